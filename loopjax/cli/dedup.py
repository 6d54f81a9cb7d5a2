"""`loopjax dedup`: loops of a store that are the same recording."""

import argparse

from loopjax.cli.verb import DONE, Verb

MAX_HEARD = 20_000


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write all sets as .csv, .parquet or .json"
    )
    parser.add_argument(
        "--max-heard",
        type=int,
        default=MAX_HEARD,
        metavar="N",
        help="pairs compared by listening to both files, most similar first; beyond, and with 0, "
        f"embeddings alone decide (default: {MAX_HEARD})",
    )
    parser.add_argument(
        "--cosine",
        type=float,
        metavar="X",
        help="from which on unheard pairs are copies (default: from the store's own distribution)",
    )
    parser.add_argument("--top", type=int, default=20, help="rows printed (default 20)")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_table
    from loopjax.cli.terminal import say
    from loopjax.library.dedup import dedup
    from loopjax.store.tables import check_suffix, write_table

    check_suffix(args.out)
    found = dedup(args.store, args.cosine, args.max_heard)
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
