"""`loopjax index`: an index beside a store, for quick search in very many loops."""

import argparse

from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.terminal import say
    from loopjax.library.index import K_MEASURED, build_index

    done = build_index(args.store)
    say(
        f"{done.n_rows} rows are indexed ({done.n_added} new, {done.n_removed} gone); it finds "
        f"{done.recall:.1%} of the exact {K_MEASURED} nearest"
    )
    return DONE


VERB = Verb(
    name="index",
    summary="index a store of very many loops for `similar`, or bring its index up to date",
    example="loopjax index out/emb",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
