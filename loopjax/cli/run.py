"""`loopjax run`: one experiment from one file."""

import argparse
from pathlib import Path

from loopjax.cli.verb import DONE, SOME_REJECTED, Verb, add_set_option
from loopjax.config import ExperimentConfig, load_config

QUICK = ("seeds=[0]", "evaluate.bootstrap=100", "compare_encoders=[]")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="experiment file")
    parser.add_argument("-o", "--out", help="run folder (default: out/NAME, the config's name)")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    add_set_option(parser, "embed.encoder=loopjax-nano")


def _act(args: argparse.Namespace) -> int:
    return run_experiment(load_config(args.config, args.set), args.out, restart=args.restart)


def run_folder(config: ExperimentConfig, out: str | None) -> Path:
    """The folder asked for, or the one that bears the experiment's name."""
    return Path("out") / config.name if out is None else Path(out)


def run_experiment(
    config: ExperimentConfig, out: str | None, *, restart: bool = False, ranking: bool = True
) -> int:
    """Runs an experiment and prints what it found."""
    from loopjax.cli.printing import print_evaluation, print_ranking, say
    from loopjax.experiment.run import run

    result = run(config, run_folder(config, out), restart=restart, log=say)
    if ranking:
        print_ranking(result.scores, min(config.report.top, 20))
    print_evaluation(result.evaluation)
    return SOME_REJECTED if result.n_rejected else DONE


VERB = Verb(
    name="run",
    summary="embed, fit, score, evaluate and report from one file; a killed run continues",
    example="loopjax run configs/demo.yaml -o out/r1 --set detectors.residual.params.epochs=50",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
