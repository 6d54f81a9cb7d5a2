"""`loopjax demo`: the bundled experiment, offline."""

import argparse
from pathlib import Path

from loopjax.cli.run import QUICK, run_experiment
from loopjax.cli.verb import Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", default="out/demo", help="run folder (default: out/demo)")
    parser.add_argument("--quick", action="store_true", help="one seed, one encoder")


def _act(args: argparse.Namespace) -> int:
    from loopjax.experiment.load import load_config

    return run_experiment(load_config("demo", QUICK if args.quick else ()), Path(args.out))


VERB = Verb(
    name="demo",
    summary="run everything on the bundled loops with the bundled encoder, offline",
    example="loopjax demo -o out/demo",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
