"""`loopjax mislabelled`: loops that sound as if they belonged in another folder."""

import argparse

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.verb import DONE, Verb
from loopjax.config.library import MislabelledConfig


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")
    parser.add_argument("-o", "--out", metavar="FILE", help="write .csv, .parquet or .json")
    add_settings(parser, MislabelledConfig)
    parser.add_argument("--top", type=int, default=20, help="rows printed (default 20)")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_table
    from loopjax.library.mislabelled import mislabelled
    from loopjax.store.tables import check_suffix, write_table

    check_suffix(args.out)
    config = given_settings(args, MislabelledConfig())
    found = mislabelled(args.store, config.column, config.depth)
    if args.out is not None:
        write_table(found.table, args.out)
    print_table(found.table, ("rank", "label", "sounds_like", "p_value", "path"), args.top)
    return DONE


VERB = Verb(
    name="mislabelled",
    summary="which loops sound as if they belonged in another folder",
    example="loopjax mislabelled out/emb -o suspects.csv; loopjax mislabelled out/emb --depth 1",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
