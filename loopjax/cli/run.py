"""`loopjax run`: one experiment from one file."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from loopjax.cli.options import add_log_option, add_set_option
from loopjax.cli.seeds import parse_seeds
from loopjax.cli.terminal import say
from loopjax.cli.verb import DONE, SOME_REJECTED, Verb
from loopjax.config import ExperimentConfig
from loopjax.errors import UserError

QUICK = ("seeds=[0]", "evaluate.bootstrap=100", "compare_encoders=[]")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="experiment file, or the name of a recipe"
    )
    parser.add_argument(
        "sources", nargs="*", metavar="SRC", help="your loops, instead of the config's data.sources"
    )
    parser.add_argument("--list", action="store_true", help="name the bundled recipes and stop")
    parser.add_argument("-o", "--out", help="run folder (default: out/NAME, the config's name)")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, one encoder, fewer severities"
    )
    parser.add_argument(
        "--seeds", metavar="A..B", help="the same seeds for every detector, e.g. 0..4"
    )
    add_log_option(parser)
    add_set_option(parser, "embed.encoder=loopjax-nano, or 'seeds=[0,1]'")


def _act(args: argparse.Namespace) -> int:
    if args.list:
        return _list_recipes()
    if args.config is None:
        raise UserError("name an experiment file or a recipe (`loopjax run --list`)")
    config = _config(args)
    out = Path("out") / config.name if args.out is None else Path(args.out)
    return run_experiment(config, out, restart=args.restart, loggers=args.log)


def run_experiment(
    config: ExperimentConfig, out: Path, *, restart: bool = False, loggers: Sequence[str] = ()
) -> int:
    """Runs an experiment and prints what it found."""
    from loopjax.cli.printing import print_evaluation, print_ranking
    from loopjax.experiment.run import run_experiment

    result = run_experiment(config, out, restart=restart, log=say, loggers=loggers)
    if result.scores is not None:
        table = result.scores.table
        print_ranking(table, min(config.report.top, 20), len(table))
    print_evaluation(result.evaluation)
    return SOME_REJECTED if result.n_rejected else DONE


def _config(args: argparse.Namespace) -> ExperimentConfig:
    """The experiment asked for; `--quick` and `--seeds` also replace the seeds of detectors."""
    from loopjax.experiment.load import load_config

    config = load_config(args.config, args.set)
    changes: list[str] = [*QUICK] if args.quick else []
    if args.quick and config.evaluate.robustness != "none":
        changes.append("evaluate.robustness=quick")
    if args.seeds is not None:
        changes.append(f"seeds={parse_seeds(args.seeds)}")
    if changes:
        changes += [f"detectors.{i}.protocol_seeds={{}}" for i in range(len(config.detectors))]
        config = load_config(args.config, [*args.set, *changes])
    if args.sources:
        if config.data.embeddings or config.data.sets:
            raise UserError(f"{args.config} works on embeddings and takes no audio: see its `data`")
        data = dataclasses.replace(config.data, sources=tuple(args.sources))
        config = dataclasses.replace(config, data=data)
    return config


def _list_recipes() -> int:
    from loopjax.experiment.load import recipes

    for name, what in recipes().items():
        print(f"{name:<20} {what}")  # noqa: T201
    return DONE


VERB = Verb(
    name="run",
    summary="embed, fit, score, evaluate and report from one file; a killed run continues",
    example="loopjax run baselines my/loops -o out/first --set detectors.knn.params.n_neighbors=3",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
