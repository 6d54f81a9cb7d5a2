"""`loopjax score`: audio or embeddings by a trained model."""

import argparse

from loopjax.cli.terminal import say
from loopjax.cli.verb import DONE, SOME_REJECTED, Verb, add_encoder_option
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of fit, convert or a run")
    parser.add_argument(
        "sources", nargs="+", metavar="SRC|EMB", help="audio, or an embedding store"
    )
    parser.add_argument(
        "-o", "--out", help="scores to write: .parquet, .csv or a folder, also s3://..."
    )
    parser.add_argument("--csv", help="also write CSV here")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--target-fpr", type=float, metavar="RATE", help="flag this fraction of normal loops"
    )
    rate.add_argument(
        "--target-fdr",
        type=float,
        metavar="RATE",
        help="this fraction of what is flagged is normal",
    )
    add_encoder_option(parser)
    parser.add_argument("--top", type=int, default=20, help="rows printed (default 20)")


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.printing import print_ranking
    from loopjax.detectors.storage import model_folder
    from loopjax.experiment.scoring import most_anomalous, score_blocks, scores_of_store
    from loopjax.io.remote import place_of
    from loopjax.model import load_model
    from loopjax.store.scores import write_csv, write_csv_tables, write_scores
    from loopjax.store.stream import StoredEmbeddings

    out, csv = (None if name is None else place_of(name) for name in (args.out, args.csv))
    if out is not None and out.suffix.lower() == ".csv":
        if csv is not None:
            raise UserError(f"-o {out} is CSV already; leave out --csv")
        out, csv = None, out
    folder = model_folder(args.model)
    model = load_model(folder)
    model.check_targets(args.target_fpr, args.target_fdr)
    embeddings = model.embeddings_of(args.sources, args.encoder)
    if isinstance(embeddings, StoredEmbeddings):
        targets = (args.target_fpr, args.target_fdr)
        with scores_of_store(model, folder, embeddings, out, *targets) as found:
            if csv is not None:
                write_csv_tables(score_blocks(found), csv)
            print_ranking(most_anomalous(found, args.top), args.top, len(embeddings))
    else:
        scores = model.score(embeddings, target_fpr=args.target_fpr, target_fdr=args.target_fdr)
        if out is not None:
            write_scores(scores, out, csv=csv)
        elif csv is not None:
            write_csv(scores.table, csv)
        print_ranking(scores.table, args.top, len(scores.table))
    for failure in embeddings.failures.to_pylist():
        say(f"rejected {failure['path']}: {failure['reason']} ({failure['message']})")
    return SOME_REJECTED if len(embeddings.failures) else DONE


VERB = Verb(
    name="score",
    summary="score audio or embeddings with a trained detector; higher = more anomalous",
    example="loopjax score out/residual new_loop.wav -o scores.csv",
    add_options=_add_options,
    act=_act,
    compiles=True,
    writes_to_addresses=True,
)
