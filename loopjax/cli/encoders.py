"""`loopjax encoders`: list, fetch and check encoders."""

import argparse
import dataclasses

from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("list", "pull", "verify"),
        nargs="?",
        default="list",
        help="default: list",
    )
    parser.add_argument("name", nargs="?", help="encoder name, or a folder for verify")
    parser.add_argument(
        "--allow-http", action="store_true", help="pull: accept an HF_ENDPOINT without encryption"
    )


def _act(args: argparse.Namespace) -> int:
    if args.action == "list":
        _print_table()
        return DONE
    if args.name is None:
        raise UserError(f"encoders {args.action} needs a name; see `loopjax encoders list`")
    from loopjax.convert.hub import pull
    from loopjax.encoders.load import verify

    pulls = args.action == "pull"
    done = pull(args.name, allow_http=args.allow_http) if pulls else verify(args.name)
    print(printable(str(done)))  # noqa: T201
    return DONE


def _print_table() -> None:
    from rich.table import Table

    from loopjax.cli.printing import cell, stdout
    from loopjax.encoders.load import EncoderRow, encoders

    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in dataclasses.fields(EncoderRow):
        table.add_column(field.name, overflow="fold")
    for row in encoders():
        table.add_row(*(cell(_shown(value)) for value in dataclasses.astuple(row)))
    stdout().print(table)


def _shown(value: object) -> object:
    """Yes or nothing for flags, nothing for what is not known."""
    if isinstance(value, bool):
        return "yes" if value else ""
    return value


VERB = Verb(
    name="encoders",
    summary="list the known encoders, fetch one, or check one",
    example="loopjax encoders list; loopjax encoders pull clap-htsat-fused",
    add_options=_add_options,
    act=_act,
)
