"""`loopjax explain`: why one loop is anomalous."""

import argparse
import json
from pathlib import Path
from typing import Any

from loopjax.cli.verb import DONE, Verb, add_encoder_option
from loopjax.errors import UserError

PICTURE_COLUMNS = 800


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder written by fit or run")
    parser.add_argument("file", metavar="FILE", help="one audio file")
    parser.add_argument(
        "-o", "--out", required=True, help="folder for explain.json and explain.svg"
    )
    parser.add_argument(
        "--embeddings", help="store to find nearest loops in (default: the model's)"
    )
    add_encoder_option(parser)


def _act(args: argparse.Namespace) -> int:
    from loopjax.explanation import explain
    from loopjax.io import locked, write_json
    from loopjax.model import load_model
    from loopjax.store.stream import open_embeddings

    model = load_model(args.model)
    if not Path(args.file).is_file():
        raise UserError(f"{args.file}: no such audio file")
    store = args.embeddings or model.embeddings_path
    known = open_embeddings(store) if store and Path(store).exists() else None
    explanation = explain(model, args.file, args.encoder, known)
    result = explanation.to_dict()
    out = Path(args.out)
    with locked(out):
        result["picture"] = str(_draw(explanation, out / "explain.svg"))
        result["json"] = str(out / "explain.json")
        write_json(out / "explain.json", result, allow_nan=False)
    print(json.dumps(result, indent=2))  # noqa: T201
    return DONE


def _draw(explanation: Any, path: Path) -> Path:
    try:
        from loopjax.report import figures
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'loopjax[report]'") from None
    from loopjax.audio.preview import outline

    parts = {
        "duration_s": explanation.duration_s,
        "waveform": outline(explanation.samples, PICTURE_COLUMNS),
        "mel": explanation.log_mel,
        "mel_hz": explanation.mel_hz,
        "time_s": [(w.start_s + w.end_s) / 2 for w in explanation.windows],
        "score": [w.score for w in explanation.windows],
        "token_time_s": [t.time_s for t in explanation.tokens],
        "token_score": [t.score for t in explanation.tokens],
        "full_score": explanation.score,
        "threshold": explanation.threshold,
        "segment_drop": [s.drop for s in explanation.muted_segments],
        "band_drop": [b.drop for b in explanation.muted_bands],
        "band_hz": [(b.low_hz, b.high_hz) for b in explanation.muted_bands],
    }
    return figures.explanation(parts, path, title=Path(explanation.file).name)


VERB = Verb(
    name="explain",
    summary=(
        "why is this loop anomalous: where in time and pitch, and which normal loops are nearest"
    ),
    example="loopjax explain out/residual loops/odd.wav -o out/why",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
