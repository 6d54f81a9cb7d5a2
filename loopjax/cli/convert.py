"""`loopjax convert`: a published checkpoint to a loopjax folder."""

import argparse
from pathlib import Path

from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT", help=".pt, .ckpt, .pth, .safetensors or HF folder"
    )
    parser.add_argument("-o", "--out", required=True, help="folder to write")


def _act(args: argparse.Namespace) -> int:
    from loopjax.convert.checkpoint import convert

    print(printable(str(convert(Path(args.checkpoint), Path(args.out)))))  # noqa: T201
    return DONE


VERB = Verb(
    name="convert",
    summary="PyTorch or safetensors file to an Orbax encoder or head; every key accounted for",
    example="loopjax convert 630k-audioset-fusion-best.pt -o weights/clap-fused",
    add_options=_add_options,
    act=_act,
)
