"""`loopjax pull`: an encoder, a model or a store from the Hugging Face Hub."""

import argparse

from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help="hf://OWNER/NAME or hf://datasets/OWNER/NAME, with @REVISION or not",
    )
    parser.add_argument("-o", "--out", help="folder (default: the cache, where the name finds it)")
    parser.add_argument(
        "--allow-http", action="store_true", help="accept an HF_ENDPOINT without encryption"
    )


def _act(args: argparse.Namespace) -> int:
    from loopjax.hub.transfer import pull

    done = pull(args.name, args.out, allow_http=args.allow_http)
    lines = (str(done.name), f"{done.kind} in {done.folder}", f"sha256: {done.sha256}")
    print(*map(printable, lines), sep="\n  ")  # noqa: T201
    return DONE


VERB = Verb(
    name="pull",
    summary="fetch an encoder, a model or a store that was pushed, every file checked",
    example="loopjax pull hf://me/bass-loops",
    add_options=_add_options,
    act=_act,
)
