"""`loopjax encoders`: list, fetch and check encoders."""

import argparse

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


def _act(args: argparse.Namespace) -> int:
    from loopjax.encoders import load as zoo

    if args.action == "list":
        _print_table(zoo.encoders())
        return DONE
    if args.name is None:
        raise UserError(f"encoders {args.action} needs a name; see `loopjax encoders list`")
    print(zoo.pull(args.name) if args.action == "pull" else zoo.verify(args.name))  # noqa: T201
    return DONE


def _print_table(rows: list[dict]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from loopjax.cli.printing import stdout

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str("" if v is None else v)) for v in row.values()))
    stdout().print(table)


VERB = Verb(
    name="encoders",
    summary="list the known encoders, fetch one, or check one",
    example="loopjax encoders list; loopjax encoders pull clap-htsat-fused",
    add_options=_add_options,
    act=_act,
)
