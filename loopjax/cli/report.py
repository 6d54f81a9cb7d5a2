"""`loopjax report`: the HTML report of a run folder again, or of any scores."""

import argparse

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb
from loopjax.config import ReportConfig
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN|SCORES", help="run folder, or scores as `score` writes them"
    )
    parser.add_argument("--store", metavar="STORE", help="embeddings of the loops in SCORES")
    parser.add_argument(
        "--model", metavar="MODEL", help="that gave SCORES: say where loops stand out"
    )
    parser.add_argument("-o", "--out", metavar="HTML", help="file to write for SCORES")
    add_settings(parser, ReportConfig)


def _act(args: argparse.Namespace) -> int:
    from loopjax.experiment.record import read_record
    from loopjax.experiment.run import report_run
    from loopjax.io.remote import place_of
    from loopjax.store.scores import is_folder_of_scores, read_scores

    folder = place_of(args.run)
    if folder.is_file() or is_folder_of_scores(folder):
        from loopjax.experiment.curation import curate, find_reasons
        from loopjax.model import load_model
        from loopjax.report.page import write_report

        config = given_settings(args, ReportConfig())
        curated = curate(args.store) if args.store and place_of(args.store).exists() else None
        reasons = None
        if args.model:
            if curated is None:
                raise UserError("--model needs the embeddings of the loops: --store STORE")
            scores = read_scores(folder)
            reasons = find_reasons(load_model(args.model), scores, args.store, config.reasons)
        page = write_report(
            folder, args.out, config, store=args.store, curated=curated, reasons=reasons
        )
        print(printable(str(page)))  # noqa: T201
        return DONE
    if args.store or args.out or args.model:
        raise UserError(f"{folder} holds no scores: a run has its own store and page")
    config = given_settings(args, read_record(folder).config.report)
    print(printable(str(report_run(folder, config))))  # noqa: T201
    return DONE


VERB = Verb(
    name="report",
    summary="write the one-file HTML report of a run again, or of any scores",
    example="loopjax report out/demo --audio link; loopjax report scores.parquet --store out/emb",
    add_options=_add_options,
    act=_act,
)
