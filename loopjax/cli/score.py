"""`loopjax score`: audio or embeddings by a trained model."""

import argparse
from pathlib import Path
from typing import Any

from loopjax.cli.verb import DONE, SOME_REJECTED, Verb
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder written by fit or run")
    parser.add_argument(
        "sources", nargs="+", metavar="SRC|EMB", help="audio, or an embedding store"
    )
    parser.add_argument("-o", "--out", help="scores.parquet to write")
    parser.add_argument("--csv", help="also write CSV here")
    parser.add_argument(
        "--target-fpr", type=float, help="flag by conformal p-value at this false-positive rate"
    )
    parser.add_argument("--top", type=int, default=20, help="rows printed (default 20)")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_ranking, say
    from loopjax.model import TrainedModel, score_embeddings
    from loopjax.store.foreign import SUFFIXES
    from loopjax.store.read import part_files, read_embeddings
    from loopjax.store.scores import write_csv, write_scores

    model = TrainedModel.load(args.model)
    first = Path(args.sources[0])
    is_store = first.is_dir() and (part_files(first) or part_files(first / "embeddings"))
    is_file = first.suffix in (".parquet", *SUFFIXES)
    if len(args.sources) == 1 and (is_store or is_file):
        embeddings = read_embeddings(first)
    else:
        embeddings = _embed_like(model, args.sources)
    scores = score_embeddings(model, embeddings, args.target_fpr)
    if args.out is not None:
        write_scores(scores, Path(args.out), csv=args.csv)
    elif args.csv is not None:
        write_csv(scores.table, Path(args.csv))
    print_ranking(scores, args.top)
    for failure in embeddings.failures.to_pylist():
        say(f"rejected {failure['path']}: {failure['reason']} ({failure['message']})")
    return SOME_REJECTED if len(embeddings.failures) else DONE


def encoder_of(model: Any) -> str:
    """The encoder that made a model's training embeddings.

    Raises:
        UserError: it is not known.
    """
    name = model.embedding.get("encoder_path") or model.embedding.get("encoder")
    if not name:
        raise UserError(
            "the model was trained on embeddings of unknown origin, so audio cannot be embedded "
            "for it; score an embedding file of the same origin instead"
        )
    return name


def _embed_like(model: Any, sources: list[str]) -> Any:
    """Embeds audio in memory exactly as the model's training embeddings were made."""
    from loopjax.embedding.corpus import embed, options_from_metadata
    from loopjax.encoders.load import load_encoder

    options = options_from_metadata(model.embedding)
    encoder = load_encoder(encoder_of(model), options.precision)
    return embed(sources, encoder, config=options)


VERB = Verb(
    name="score",
    summary="score audio or embeddings with a trained detector; higher = more anomalous",
    example="loopjax score out/residual new_loop.wav",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
