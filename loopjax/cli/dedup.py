"""`loopjax dedup`: loops of a store that are the same recording."""

import argparse

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.verb import DONE, Verb
from loopjax.config.library import DedupConfig


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write all sets as .csv, .parquet or .json"
    )
    add_settings(parser, DedupConfig)
    parser.add_argument("--top", type=int, default=20, help="rows printed (default 20)")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_table
    from loopjax.cli.terminal import say
    from loopjax.library.dedup import dedup
    from loopjax.store.tables import check_suffix, write_table

    check_suffix(args.out)
    config = given_settings(args, DedupConfig())
    found = dedup(args.store, config.cosine, config.max_heard)
    if args.out is not None:
        write_table(found.table, args.out)
    print_table(found.table, ("set", "mark", "evidence", "cosine", "correlation", "path"), args.top)
    say(
        f"{len(found.table)} loops in {found.n_sets} sets of copies; {found.n_heard} pairs were "
        f"heard, unheard ones are copies from a cosine of {found.cosine:.4f} on"
    )
    return DONE


VERB = Verb(
    name="dedup",
    summary="which loops of a store are the same recording, and which copy to keep",
    example="loopjax dedup out/emb -o copies.csv; loopjax dedup out/emb --max-heard 0",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
