"""`loopjax finetune`: train an encoder further on one's own loops."""

import argparse
import dataclasses
from pathlib import Path

from loopjax.cli.options import add_log_option, add_set_option
from loopjax.cli.terminal import say
from loopjax.cli.verb import DONE, SOME_REJECTED, Verb

SHOWN_EVERY = 10  # steps


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="settings of the training, a YAML file")
    parser.add_argument(
        "sources", nargs="*", metavar="SRC", help="your loops, instead of the config's data.sources"
    )
    parser.add_argument("-o", "--out", help="run folder (default: out/NAME, the config's name)")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    add_set_option(parser, "embed.encoder=clap-htsat-fused, or optimizer.steps=2000")
    add_log_option(parser)
    hosts = parser.add_argument_group("several hosts that train together and see one run folder")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first; or auto")
    hosts.add_argument("--processes", type=int, metavar="N", help="number of processes")
    hosts.add_argument("--process-index", type=int, metavar="I", help="which of them this is")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_evaluation
    from loopjax.config.finetuning import read_finetuning
    from loopjax.experiment.finetune import finetune
    from loopjax.experiment.load import find_config, trainings
    from loopjax.parallel import joined, process_slot

    config = read_finetuning(find_config(args.config, trainings()), args.set)
    if args.sources:
        data = dataclasses.replace(config.data, sources=tuple(args.sources))
        config = dataclasses.replace(config, data=data)
    out = Path("out") / config.name if args.out is None else Path(args.out)

    def tell(done: int, metrics: dict[str, float]) -> None:
        if first and (done % SHOWN_EVERY == 0 or done == config.optimizer.steps):
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            say(f"step {done} of {config.optimizer.steps}  {shown}")

    with joined(args.coordinator, args.processes, args.process_index):
        first = process_slot()[0] == 0
        log = say if first else _silent
        result = finetune(
            config, out, restart=args.restart, log=log, on_step=tell, loggers=args.log
        )
    if first:
        print_evaluation(result.evaluation)
        print(f"saved {result.encoder}, the weights after step {result.best_step}")  # noqa: T201
        for failure in result.rejected[:SHOWN_EVERY]:
            say(f"rejected {failure.path}: {failure.reason} ({failure.message})")
    return SOME_REJECTED if result.rejected else DONE


def _silent(line: str) -> None:
    """Says nothing: the first process speaks for all."""


VERB = Verb(
    name="finetune",
    summary="train an encoder further on your own loops; a killed run continues",
    example=(
        "loopjax finetune configs/finetune_demo.yaml\n"
        "  loopjax finetune finetune_demo my/loops -o out/mine --set trainable.what=all\n"
        "  loopjax embed my/loops -o out/emb --encoder out/mine/encoder"
    ),
    add_options=_add_options,
    act=_act,
    compiles=True,
)
