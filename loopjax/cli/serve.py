"""`loopjax serve`: the report's page, live."""

import argparse
import contextlib
import os
from pathlib import Path

from loopjax.cli.terminal import say
from loopjax.cli.verb import DONE, Verb, add_encoder_option
from loopjax.errors import InterruptedRunError, UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of `loopjax embed`, or of a run")
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder of fit or a run")
    parser.add_argument("--port", type=int, default=8765, help="0: any (default: 8765)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    parser.add_argument(
        "--marks", metavar="CSV", help="file for decisions (default: STORE-marks.csv beside STORE)"
    )
    parser.add_argument(
        "--max-upload", type=int, default=64, metavar="MIB", help="of one file (default: 64)"
    )
    add_encoder_option(parser)


def _act(args: argparse.Namespace) -> int:
    from loopjax.report.extra import require_report_extra

    require_report_extra()
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'loopjax[serve]'") from None
    from loopjax.experiment.curation import curate, reason_of
    from loopjax.io import check_can_write
    from loopjax.model import load_model
    from loopjax.serve.live import Live
    from loopjax.serve.server import listen, serve

    if args.max_upload < 1:
        raise UserError(f"--max-upload {args.max_upload}: expected at least 1 MiB")
    store = Path(os.path.abspath(args.store))  # noqa: PTH100 - keeps links; "." has no name
    marks = Path(args.marks) if args.marks else store.with_name(f"{store.name}-marks.csv")
    check_can_write(marks)
    model = load_model(args.model)
    with (
        contextlib.suppress(InterruptedRunError, KeyboardInterrupt),  # how a server usually ends
        listen(args.host, args.port) as listener,
    ):
        say(f"loopjax serve: reading {store}; marks go to {marks}; Ctrl-C ends it")
        encoder = model.load_encoder(args.encoder)
        live = Live(store, model, encoder, curate(store), reason_of)
        serve(live, marks, listener, args.host, args.max_upload << 20)
    return DONE


VERB = Verb(
    name="serve",
    summary="the report's page, live: drop loops in, search by sound and text, mark",
    example="loopjax serve out/emb --model out/model; loopjax serve out/run --model out/run",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
