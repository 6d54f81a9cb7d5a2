"""`loopjax rerank`: what a few marks say about all other loops."""

import argparse

from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")
    parser.add_argument("marks", metavar="MARKS", help="file of marks, .csv or .parquet")
    parser.add_argument("-o", "--out", metavar="FILE", help="write .csv, .parquet or .json")
    parser.add_argument("--top", type=int, default=20, help="rows printed (default 20)")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_table
    from loopjax.cli.terminal import say
    from loopjax.library.rerank import rerank
    from loopjax.store.tables import check_suffix, write_table

    check_suffix(args.out)
    found = rerank(args.store, args.marks)
    if args.out is not None:
        write_table(found.table, args.out)
    print_table(found.table, ("rank", "reject_probability", "path"), args.top)
    quality = "" if found.auroc is None else f"; AUROC on marks held out: {found.auroc:.2f}"
    say(f"learned from {found.n_keep} kept and {found.n_reject} rejected loops{quality}")
    return DONE


VERB = Verb(
    name="rerank",
    summary="rank the loops that nobody marked by what the marks say",
    example="loopjax rerank out/emb marks.csv -o next.csv",
    add_options=_add_options,
    act=_act,
)
