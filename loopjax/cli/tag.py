"""`loopjax tag`: what folders or heaps of alike loops sound like, in given words."""

import argparse

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.verb import DONE, Verb
from loopjax.config.library import TagConfig


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")
    parser.add_argument("words", nargs="+", metavar="WORD", help='such as kick "warm pad"')
    parser.add_argument("-o", "--out", metavar="FILE", help="write .csv, .parquet or .json")
    add_settings(parser, TagConfig)
    parser.add_argument(
        "--encoder",
        metavar="NAME|FOLDER",
        help="where the one that the store names is not to be found any more",
    )
    parser.add_argument("--top", type=int, default=1, help="words printed per folder (default 1)")


def _act(args: argparse.Namespace) -> int:
    import numpy as np
    import pyarrow as pa

    from loopjax.cli.printing import print_table
    from loopjax.library.tags import tag
    from loopjax.store.tables import check_suffix, write_table

    check_suffix(args.out)
    config = given_settings(args, TagConfig())
    found = tag(
        args.store, args.words, config.column, config.depth, config.clusters, args.encoder
    ).table
    if args.out is not None:
        write_table(found, args.out)
    best = found.filter(pa.array(np.asarray(found["rank"]) <= args.top))
    names = ("label", "n_loops", "tag", "probability", "example")
    print_table(best, [name for name in names if name in best.column_names], len(best))
    return DONE


VERB = Verb(
    name="tag",
    summary="which of some words fit each folder, or each heap of alike loops",
    example='loopjax tag out/emb kick "warm pad" "upright bass"; loopjax tag out/emb --clusters 20 '
    "kick snare bass",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
