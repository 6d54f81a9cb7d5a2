"""`loopjax report`: the HTML report of a run folder again."""

import argparse
from pathlib import Path

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb
from loopjax.config import ReportConfig


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    add_settings(parser, ReportConfig)


def _act(args: argparse.Namespace) -> int:
    from loopjax.experiment.record import read_record
    from loopjax.experiment.run import report_run

    folder = Path(args.run)
    config = given_settings(args, read_record(folder).config.report)
    print(printable(str(report_run(folder, config))))  # noqa: T201
    return DONE


VERB = Verb(
    name="report",
    summary="write the one-file HTML report of a run again",
    example="loopjax report out/demo --audio link",
    add_options=_add_options,
    act=_act,
)
