"""`loopjax explain`: why one loop is anomalous."""

import argparse
import json
from pathlib import Path

from loopjax.cli.score import encoder_of
from loopjax.cli.verb import DONE, Verb
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder written by fit or run")
    parser.add_argument("file", metavar="FILE", help="one audio file")
    parser.add_argument("-o", "--out", required=True, help="folder for explanation.json and .svg")
    parser.add_argument(
        "--embeddings", help="store to find nearest loops in (default: the model's)"
    )


def _act(args: argparse.Namespace) -> int:
    from loopjax.encoders.load import load_encoder
    from loopjax.explanation import explain
    from loopjax.model import TrainedModel
    from loopjax.store.read import read_embeddings

    model = TrainedModel.load(args.model)
    if not Path(args.file).is_file():
        raise UserError(f"{args.file}: no such audio file")
    store = args.embeddings or model.embeddings_path
    known = read_embeddings(store) if store and Path(store).exists() else None
    encoder = load_encoder(encoder_of(model))
    result = explain(
        model.detector, encoder, args.file, neighbors_from=known, out_dir=Path(args.out)
    )
    print(json.dumps(result, indent=2))  # noqa: T201
    return DONE


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
