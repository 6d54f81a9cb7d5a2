"""`loopjax push`: an encoder, a model or a store to the Hugging Face Hub."""

import argparse

from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="an encoder, a model or a store")
    parser.add_argument("name", metavar="OWNER/NAME", help="repository; made if it is not there")
    parser.add_argument(
        "--public", action="store_true", help="a new repository is for everybody (default: private)"
    )
    parser.add_argument(
        "--allow-http", action="store_true", help="accept an HF_ENDPOINT without encryption"
    )


def _act(args: argparse.Namespace) -> int:
    from loopjax.hub.transfer import push

    print(push(args.folder, args.name, public=args.public, allow_http=args.allow_http))  # noqa: T201
    return DONE


VERB = Verb(
    name="push",
    summary="send an encoder, a model or a store to the Hugging Face Hub, with a card",
    example="loopjax push out/residual me/bass-loops",
    add_options=_add_options,
    act=_act,
)
