"""`loopjax similar`: the loops of a store that sound most like a given one."""

import argparse

from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")
    parser.add_argument(
        "queries", nargs="*", metavar="QUERY", help="audio file or folder; id or path of a row"
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="WORDS",
        help="a description instead of a sound; for encoders with a text tower",
    )
    parser.add_argument("-k", type=int, default=10, metavar="N", help="loops each (default: 10)")
    parser.add_argument("-o", "--out", metavar="FILE", help="also write .csv, .parquet or .json")
    parser.add_argument(
        "--encoder",
        metavar="NAME|FOLDER",
        help="encoder of queries, where the one that the store names is not to be found any more",
    )
    parser.add_argument(
        "--exact", action="store_true", help="compare with every row, also where there is an index"
    )


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_table
    from loopjax.library.similar import similar
    from loopjax.store.tables import check_suffix, write_table

    check_suffix(args.out)
    found = similar(
        args.store, args.queries, args.k, args.encoder, text=args.text, exact=args.exact
    ).table
    if args.out is not None:
        write_table(found, args.out)
    names = [
        name for name in ("query", "rank", "cosine", "path", "id") if name in found.schema.names
    ]
    several = len(set(found["query"].to_pylist())) > 1
    print_table(found, names if several else names[1:])
    return DONE


VERB = Verb(
    name="similar",
    summary="which loops of a store sound most like a given one, or like what a text says",
    example='loopjax similar out/emb new/kick.wav -k 5; loopjax similar out/emb --text "dry kick"',
    add_options=_add_options,
    act=_act,
    compiles=True,
)
