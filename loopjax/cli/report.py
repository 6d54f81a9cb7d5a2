"""`loopjax report`: the HTML report of a run folder again."""

import argparse
import dataclasses
from pathlib import Path

from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--audio", choices=("auto", "embed", "link", "none"))
    parser.add_argument("--top", type=int, help="loops listed with players")


def _act(args: argparse.Namespace) -> int:
    from loopjax.experiment.record import recorded_config
    from loopjax.report.page import write_report

    given = {k: v for k, v in (("audio", args.audio), ("top", args.top)) if v is not None}
    config = dataclasses.replace(recorded_config(Path(args.run)).report, **given)
    print(write_report(Path(args.run), config=config))  # noqa: T201
    return DONE


VERB = Verb(
    name="report",
    summary="write the one-file HTML report of a run again",
    example="loopjax report out/demo --audio link",
    add_options=_add_options,
    act=_act,
)
