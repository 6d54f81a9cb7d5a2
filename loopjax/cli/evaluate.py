"""`loopjax evaluate`: the tables and figures of a finished run, anew."""

import argparse
from pathlib import Path

from loopjax.cli.terminal import say
from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=_run_folder, help="run folder")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_evaluation
    from loopjax.experiment.run import evaluate_run

    print_evaluation(evaluate_run(args.run, log=say))
    return DONE


def _run_folder(text: str) -> Path:
    if Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is a file; run it with `loopjax run {text}`")
    return Path(text)


VERB = Verb(
    name="evaluate",
    summary="a finished run again: thresholds, separation, AUROC where labeled, tests, figures",
    example="loopjax evaluate out/demo",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
