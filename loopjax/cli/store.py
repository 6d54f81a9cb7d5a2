"""`loopjax store`: check a store of embeddings, or list what could not be embedded."""

import argparse
import sys
from pathlib import Path

from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb
from loopjax.errors import ModelCheckError, UserError
from loopjax.io.remote import place_of


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("verify", "failures"),
        help="verify: compare every byte with its checksum; failures: rejected inputs as CSV",
    )
    parser.add_argument("store", help="folder that `loopjax embed` wrote")


def _act(args: argparse.Namespace) -> int:
    folder = place_of(args.store)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such store")
    inner = folder / "embeddings"
    folder = inner if inner.is_dir() else folder  # of a run
    return _verify(folder) if args.action == "verify" else _list_failures(folder)


def _verify(folder: Path) -> int:
    from loopjax.store.verify import verify_store

    check = verify_store(folder)
    for fault in check.faults:
        print(printable(str(fault)))  # noqa: T201
    if check.faults:
        raise ModelCheckError(f"{folder}: {len(check.faults)} faults in {check.n_parts} shards")
    found = f"{check.n_rows} loops in {check.n_parts} shards and {check.n_failures} rejected inputs"
    print(printable(f"{folder}: {found}, every byte as it was written"))  # noqa: T201
    return DONE


def _list_failures(folder: Path) -> int:
    from loopjax.store.failures import read_failures
    from loopjax.store.scores import write_rows

    write_rows(read_failures(folder), sys.stdout)
    return DONE


VERB = Verb(
    name="store",
    summary="check a store of embeddings, or list what could not be embedded",
    example="loopjax store verify out/emb; loopjax store failures out/emb",
    add_options=_add_options,
    act=_act,
)
