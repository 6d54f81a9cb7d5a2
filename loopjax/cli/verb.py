"""What a verb of the command line consists of."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

DONE, SOME_REJECTED = 0, 3  # exit codes; errors bring their own


@dataclass(frozen=True)
class Verb:
    """One verb: its options and its action.

    Attributes:
        name: as typed.
        summary: one line for `loopjax --help`.
        example: one command that works.
        add_options: adds the verb's arguments to its parser.
        act: does the work and returns the exit code.
        compiles: whether jax compiles something, which is then cached on disk.
        writes_to_addresses: whether `--out` may be `s3://bucket/emb` and the like.
    """

    name: str
    summary: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    act: Callable[[argparse.Namespace], int]
    compiles: bool = False
    writes_to_addresses: bool = False


def add_encoder_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--encoder` to a verb that takes a model."""
    parser.add_argument(
        "--encoder",
        metavar="NAME|FOLDER",
        help="encoder for audio, where the one that the model names is not to be found any more",
    )
