"""`loopjax embed`: audio to a store of embeddings."""

import argparse
import dataclasses
import json
from pathlib import Path

from loopjax.cli.verb import DONE, SOME_REJECTED, Verb
from loopjax.config import EmbedConfig, from_dict


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="audio file, folder, list of paths (.txt), tfds:NAME or bundled:demo",
    )
    parser.add_argument("-o", "--out", required=True, help="folder of the embedding store")
    parser.add_argument("--encoder", help="bundled name, known name or converted folder")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "bf16-fused"),
        help="bf16-fused: attention as one kernel, for GPUs (default: fp32)",
    )
    parser.add_argument("--crops", help="long clips: deterministic (default) or seeded:K")
    parser.add_argument("--resample", choices=("auto", "host", "device"))
    parser.add_argument("--mono", choices=("mean", "left", "mid"))
    parser.add_argument("--batch-size", type=int, help="clips per step (default: by device)")
    parser.add_argument("--max-duration", type=float, dest="max_duration_s", metavar="SECONDS")
    parser.add_argument("--workers", type=int, help="decoding processes (default: by cores)")
    parser.add_argument(
        "--max-failures",
        type=float,
        metavar="FRACTION",
        help="rejected fraction that ends with code 4",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first rejected file")
    parser.add_argument("--accept-truncated", action="store_true", help="keep cut files, flagged")
    parser.add_argument("--sanitize", action="store_true", help="zero NaN/Inf samples, flagged")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="several hosts; or auto")
    parser.add_argument("--processes", type=int, help="number of processes with --coordinator")
    parser.add_argument("--process-index", type=int, help="this process with --coordinator")


def _act(args: argparse.Namespace) -> int:
    from loopjax.embedding.corpus import embed_corpus
    from loopjax.encoders.load import load_encoder
    from loopjax.parallel import initialize

    given = {
        field.name: value
        for field in dataclasses.fields(EmbedConfig)
        if (value := getattr(args, field.name, None)) is not None and value is not False
    }
    config = from_dict(EmbedConfig, given, "command line")
    initialize(args.coordinator, args.processes, args.process_index)
    encoder = load_encoder(config.encoder, config.precision)
    summary = embed_corpus(args.sources, encoder, Path(args.out), config, restart=args.restart)
    print(json.dumps(dataclasses.asdict(summary)))  # noqa: T201
    return SOME_REJECTED if summary.n_failed else DONE


VERB = Verb(
    name="embed",
    summary="audio files to Parquet embeddings; the same command again continues where it stopped",
    example="loopjax embed loops/ more/one.wav -o out/emb --encoder loopjax-nano",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
