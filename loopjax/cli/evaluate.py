"""`loopjax evaluate`: detectors side by side."""

import argparse
from pathlib import Path

from loopjax.cli.run import QUICK, run_experiment, run_folder
from loopjax.cli.seeds import parse_seeds
from loopjax.cli.verb import DONE, Verb, add_set_option
from loopjax.config import load_config


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="CONFIG|RUN", help="experiment file, or a run folder")
    parser.add_argument("-o", "--out", help="run folder (default: out/NAME, the config's name)")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer severities")
    parser.add_argument(
        "--seeds", metavar="A..B", help="the same seeds for every detector, e.g. 0..4"
    )
    add_set_option(parser, "seeds=[0,1]")


def _act(args: argparse.Namespace) -> int:
    """Evaluates an experiment file (running it where needed), or a finished run again.

    Both `quick` and `seeds` also replace the seeds that single detectors ask for.
    """
    from loopjax.cli.printing import print_evaluation, say

    if Path(args.target).is_dir():
        from loopjax.experiment.run import evaluate_run

        print_evaluation(evaluate_run(Path(args.target), log=say))
        return DONE
    config = load_config(args.target, args.set)
    changes: list[str] = [*QUICK] if args.quick else []
    if args.quick and config.evaluate.robustness != "none":
        changes.append("evaluate.robustness=quick")
    if args.seeds is not None:
        changes.append(f"seeds={parse_seeds(args.seeds)}")
    if changes:
        own_seeds = (f"detectors.{d.name}.protocol_seeds={{}}" for d in config.detectors)
        config = load_config(args.target, [*args.set, *changes, *own_seeds])
    if not config.evaluate.protocols:
        return run_experiment(config, args.out, ranking=False)
    from loopjax.experiment.paper import reproduce

    print_evaluation(reproduce(config, run_folder(config, args.out), log=say))
    return DONE


VERB = Verb(
    name="evaluate",
    summary="detectors side by side: thresholds, separation, AUROC where labeled, tests, figures",
    example="loopjax evaluate configs/bass392.yaml -o out/b392",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
