"""`loopjax embed`: audio to a store of embeddings."""

import argparse
import dataclasses
import json
import re

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, SOME_REJECTED, Verb
from loopjax.config import EmbedConfig
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="audio file, folder, list of paths (.txt), tar or Parquet shards (a-{000..099}.tar), "
        "address (s3://bucket/loops), hf:NAME, tfds:NAME or bundled:demo",
    )
    parser.add_argument(
        "-o", "--out", required=True, help="folder of the embedding store, or s3://bucket/emb"
    )
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    parser.add_argument("--prune", action="store_true", help="drop the rows of files that are gone")
    parser.add_argument("--json", action="store_true", help="print the summary as one line of JSON")
    add_settings(parser, EmbedConfig)
    shared = parser.add_argument_group("several workers, which come and go")
    shared.add_argument("--worker", action="store_true", help="work beside others on one store")
    shared.add_argument(
        "--shard", metavar="I/N", help="of an array job: do every N-th unit only, I from 0 to N-1"
    )
    shared.add_argument(
        "--unit-files", type=int, metavar="N", help="files of a unit of work (default: 4096)"
    )
    shared.add_argument(
        "--lease", type=float, metavar="SECONDS", help="a silent worker is dead after (default: 60)"
    )
    hosts = parser.add_argument_group("several hosts that begin and end together")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first; or auto")
    hosts.add_argument("--processes", type=int, metavar="N", help="number of processes")
    hosts.add_argument("--process-index", type=int, metavar="I", help="which of them this is")


def _act(args: argparse.Namespace) -> int:
    config = given_settings(args, EmbedConfig())
    summary = _beside_others(args, config) if args.worker or args.shard else _alone(args, config)
    if args.json:
        print(json.dumps(dataclasses.asdict(summary)))  # noqa: T201
    else:
        print(*map(printable, summary.lines(args.out)), sep="\n  ")  # noqa: T201
    return SOME_REJECTED if summary.n_failed else DONE


def _alone(args: argparse.Namespace, config: EmbedConfig):
    if args.unit_files is not None or args.lease is not None:
        raise UserError("--unit-files and --lease say how workers share; they need --worker")
    from loopjax.embedding.chain import embed_corpus
    from loopjax.encoders.load import load_encoder
    from loopjax.parallel import joined

    with joined(args.coordinator, args.processes, args.process_index):
        encoder = load_encoder(config.encoder, config.precision)
        return embed_corpus(
            args.sources, encoder, args.out, config, restart=args.restart, prune=args.prune
        )


def _beside_others(args: argparse.Namespace, config: EmbedConfig):
    if args.coordinator or args.processes is not None or args.process_index is not None:
        raise UserError("workers need no --coordinator: they meet in the store")
    if args.restart:
        raise UserError(f"--restart would discard what other workers do; delete {args.out} before")
    if args.prune:
        raise UserError("--prune needs the whole store to itself; run it without --worker")
    found = re.fullmatch(r"(\d+)/(\d+)", args.shard or "0/1")
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(f"--shard {args.shard}: expected I/N with I from 0 to N-1, like 0/8")
    if args.unit_files is not None and args.unit_files < 1:
        raise UserError(f"--unit-files {args.unit_files}: a unit has at least one file")
    if args.lease is not None and not 1 <= args.lease < float("inf"):
        raise UserError(f"--lease {args.lease:g}: at least one second")
    from loopjax.embedding.chain import embed_shared
    from loopjax.embedding.units import EXPIRE_S, UNIT_FILES
    from loopjax.encoders.load import load_encoder

    return embed_shared(
        args.sources,
        load_encoder(config.encoder, config.precision),
        args.out,
        config,
        slice_of=(int(found[1]), int(found[2])) if args.shard else None,
        unit_files=args.unit_files or UNIT_FILES,
        lease_s=args.lease or EXPIRE_S,
    )


VERB = Verb(
    name="embed",
    summary="audio files to Parquet embeddings; the same command again continues where it stopped",
    example="loopjax embed loops/ more/one.wav -o out/emb --encoder loopjax-nano",
    add_options=_add_options,
    act=_act,
    compiles=True,
    writes_to_addresses=True,
)
