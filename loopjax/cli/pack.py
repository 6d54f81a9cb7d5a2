"""`loopjax pack`: audio decoded once, as shards that feed many runs."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

from loopjax.cli.options import add_settings, given_settings
from loopjax.cli.terminal import say
from loopjax.cli.verb import DONE, SOME_REJECTED, Verb
from loopjax.config import EmbedConfig
from loopjax.errors import UserError

# What says how audio is read, of the options of `embed`.
READ = (
    *("mono", "accept_truncated", "sanitize", "min_duration_s", "max_duration_s"),
    *("include", "exclude", "workers"),
)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SRC", help="as for `loopjax embed`")
    parser.add_argument("-o", "--out", required=True, help="folder of the shards, a source itself")
    parser.add_argument(
        "--shard-loops", type=int, metavar="N", help="loops of a shard (default: 1024)"
    )
    add_settings(parser, EmbedConfig, READ)


def _act(args: argparse.Namespace) -> int:
    from loopjax.audio.decode import DecodeOptions
    from loopjax.audio.pack import SHARD_LOOPS, pack
    from loopjax.audio.sources.selection import Selection
    from loopjax.audio.sources.source import open_source
    from loopjax.io import require_apart

    config = given_settings(args, EmbedConfig())
    if args.shard_loops is not None and args.shard_loops < 1:
        raise UserError(f"--shard-loops {args.shard_loops}: a shard has at least one loop")
    options = DecodeOptions(
        mono=config.mono,
        accept_truncated=config.accept_truncated,
        sanitize=config.sanitize,
        min_duration_s=config.min_duration_s,
        max_duration_s=config.max_duration_s,
    )
    require_apart(Path(args.out), args.sources)
    corpus = open_source(args.sources, Selection(config.include, config.exclude))
    summary = pack(
        corpus,
        Path(args.out),
        options,
        config.workers or os.cpu_count() or 1,
        args.shard_loops or SHARD_LOOPS,
    )
    for failure in summary.failures:
        say(f"rejected {failure.path}: {failure.reason} ({failure.message})")
    told = dataclasses.asdict(summary)
    del told["failures"]
    print(json.dumps(told))  # noqa: T201
    return SOME_REJECTED if summary.n_failed else DONE


VERB = Verb(
    name="pack",
    summary="decode audio once into int16 mono tar shards, which feed faster than files",
    example="loopjax pack loops/ -o out/packed; loopjax embed out/packed -o out/emb",
    add_options=_add_options,
    act=_act,
)
