"""Options of verbs that come from the settings' own declarations, with their help and checks."""

import argparse
import dataclasses
import typing
from collections.abc import Collection
from typing import Any, Literal, TypeVar

from loopjax.config.settings import Field, build, fields
from loopjax.config.tree import Node, parse_yaml

T = TypeVar("T")


def add_settings(
    parser: argparse.ArgumentParser, cls: type, names: Collection[str] | None = None
) -> None:
    """Adds one option per field of a settings class, such as `--batch-size N`, or for some."""
    for field in fields(cls):
        if names is not None and field.name not in names:
            continue
        words = f"{field.setting.help}{_default(field)}"
        if field.type is bool:
            parser.add_argument(
                _flag(field), dest=field.name, action="store_true", default=None, help=words
            )
        elif typing.get_origin(field.type) is Literal:
            choices = typing.get_args(field.type)
            parser.add_argument(_flag(field), dest=field.name, choices=choices, help=words)
        else:
            parser.add_argument(_flag(field), dest=field.name, metavar=_metavar(field), help=words)


def given_settings(args: argparse.Namespace, base: T) -> T:
    """`base` with the options that were given in place of its own values.

    Raises:
        UserError: a value of the wrong type or out of range; names the option.
    """
    cls = type(base)
    given: dict[str, Node] = {}
    for field in fields(cls):
        value = getattr(args, field.name, None)
        if value is not None:
            given[field.name] = _node(field, value)
    built = build(cls, Node(given, "command line"))
    return dataclasses.replace(base, **{name: getattr(built, name) for name in given})  # pyright: ignore


def add_set_option(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds `--set KEY=VALUE`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a setting, e.g. {example}",
    )


def add_log_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--log NAME,...`, a list of sinks beside `metrics.jsonl`."""
    parser.add_argument(
        "--log",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=[],
        metavar="NAME,...",
        help="curves of training also to tensorboard or wandb (offline unless WANDB_MODE says so)",
    )


def _node(field: Field, value: Any) -> Node:
    where = f"{_flag(field)} {value}" if isinstance(value, str) else _flag(field)
    if field.type is str or not isinstance(value, str):
        return Node(value, where, quoted=True)
    if field.type == tuple[str, ...]:  # as written: YAML has other plans for a leading *
        return Node([Node(part.strip(), where, quoted=True) for part in value.split(",")], where)
    text = f"[{value}]" if typing.get_origin(field.type) is tuple else value
    return parse_yaml(text, where)


def _flag(field: Field) -> str:
    return "--" + field.name.removesuffix("_s").replace("_", "-")


def _metavar(field: Field) -> str:
    several = typing.get_origin(field.type) is tuple
    one = (
        "SECONDS"
        if field.name.endswith("_s")
        else {int: "N", float: "X", float | None: "X"}.get(field.type, "NAME")
    )
    return f"{one},..." if several else one


def _default(field: Field) -> str:
    if field.default in (None, "", (), False) or field.default is dataclasses.MISSING:
        return ""
    shown = field.default
    if isinstance(shown, tuple):
        shown = ",".join(f"{item:g}" for item in shown)
    return f" (default: {shown})"
