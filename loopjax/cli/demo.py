"""`loopjax demo`: the bundled experiment, offline."""

import argparse

from loopjax.bundled import folder
from loopjax.cli.run import QUICK, run_experiment
from loopjax.cli.verb import Verb
from loopjax.config import load_config


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", default="out/demo", help="run folder (default: out/demo)")
    parser.add_argument("--quick", action="store_true", help="one seed, one encoder")


def _act(args: argparse.Namespace) -> int:
    config = load_config(folder("configs") / "demo.yaml", QUICK if args.quick else ())
    return run_experiment(config, args.out)


VERB = Verb(
    name="demo",
    summary="run everything on the bundled loops with the bundled encoder, offline",
    example="loopjax demo -o out/demo",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
