"""`loopjax embed`: audio to a store of embeddings."""

import argparse
import dataclasses
import json
from pathlib import Path

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.verb import DONE, SOME_REJECTED, Verb
from loopjax.config import EmbedConfig


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="audio file, folder, list of paths (.txt), tfds:NAME or bundled:demo",
    )
    parser.add_argument("-o", "--out", required=True, help="folder of the embedding store")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    parser.add_argument("--prune", action="store_true", help="drop the rows of files that are gone")
    add_settings(parser, EmbedConfig)
    hosts = parser.add_argument_group("several hosts")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first; or auto")
    hosts.add_argument("--processes", type=int, metavar="N", help="number of processes")
    hosts.add_argument("--process-index", type=int, metavar="I", help="which of them this is")


def _act(args: argparse.Namespace) -> int:
    config = given_settings(args, EmbedConfig())
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder
    from loopjax.parallel import initialize

    initialize(args.coordinator, args.processes, args.process_index)
    encoder = load_encoder(config.encoder, config.precision)
    summary = embed_corpus(
        args.sources, encoder, Path(args.out), config, restart=args.restart, prune=args.prune
    )
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
