"""YAML text -> a tree that remembers where each value was written; `--set` edits the tree.

Values are read by the rules of YAML 1.2: `1e-4` is a number, while `yes`, `on`, `010` and
`2026-11-22` are text; what a setting makes of such text is decided where its type is known.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from loopjax.errors import UserError

MAX_BYTES = 200_000  # the longest config of ours has 3 kB
MAX_NODES = 20_000  # an alias bomb expands to billions of values

Scalar: TypeAlias = bool | int | float | str | None
Plain: TypeAlias = Scalar | list["Plain"] | dict[str, "Plain"]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan")
_WORDS: dict[str, Scalar] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


@dataclass(frozen=True)
class Node:
    """A value and where it was written.

    Attributes:
        value: a scalar, a list of nodes, or nodes by key.
        where: `file:line`, or the option that set it.
        quoted: whether a text stood in quotes, so that it can mean nothing but text.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    where: str
    quoted: bool = False


class _Loader(yaml.SafeLoader):
    """Composes nodes only; every scalar without a tag stays text until `_scalar` reads it."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


def read_yaml(path: Path) -> Node:
    """Reads a file whose top level is a mapping.

    Raises:
        UserError: unreadable, too large, invalid YAML, or no mapping; names file and line.
    """
    try:
        if not path.is_file() and path.exists():
            raise UserError(f"cannot read config {path}: not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read config {path}: not UTF-8 ({error.reason})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read config {path}: {reason}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: longer than {MAX_BYTES} bytes; this is not a config file")
    tree = parse_yaml(text, str(path))
    if tree.value is None:
        return Node({}, tree.where)
    if not isinstance(tree.value, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {kind_of(tree.value)}")
    return tree


def parse_yaml(text: str, name: str) -> Node:
    """Parses one document; `name` is the file, as errors call it.

    Raises:
        UserError: invalid YAML, tags, repeated keys, too many values or levels.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Node(None, name)
        return _located(node, name, [MAX_NODES])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise UserError(f"{where}: not valid YAML: {problem}{hint}") from None
    except RecursionError:
        raise UserError(f"{name}: nested too deeply; this is not a config file") from None
    finally:
        if loader is not None:
            loader.dispose()


def from_plain(value: object, where: str) -> Node:
    """Wraps plain values (from JSON, or Python arguments) in nodes that all say `where`."""
    if isinstance(value, dict):
        return Node({str(k): from_plain(v, where) for k, v in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([from_plain(v, where) for v in value], where)
    if value is None or isinstance(value, bool | int | float | str):
        return Node(value, where, quoted=True)
    raise UserError(f"{where}: a setting cannot hold {type(value).__name__} ({value!r})")


def to_plain(node: Node) -> Plain:
    """The values without their places."""
    if isinstance(node.value, dict):
        return {key: to_plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [to_plain(item) for item in node.value]
    return node.value


def entries(node: Node) -> dict[str, Node]:
    """The nodes of a mapping by key; changing it changes the tree."""
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: expected a mapping, found {kind_of(node.value)}")
    return node.value


def items(node: Node) -> list[Node]:
    """The nodes of a list; changing it changes the tree."""
    if not isinstance(node.value, list):
        raise UserError(f"{node.where}: expected a list, found {kind_of(node.value)}")
    return node.value


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings key by key, everything else replaced."""
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        merged = dict(base.value)
        for key, node in over.value.items():
            merged[key] = merge(merged[key], node) if key in merged else node
        return Node(merged, over.where)
    return over


def apply_override(tree: Node, override: str) -> None:
    """Sets one value of a tree in place, as `--set key.path=value` asks.

    The value is YAML; items of a list are addressed by index or by their `name`.

    Raises:
        UserError: not of that form, or the path leads through a plain value.
    """
    key_path, equals, text = override.partition("=")
    where = f"--set {override}"
    if not equals or not all(key_path.split(".")):
        raise UserError(f"{where}: write it as --set key.path=value")
    value = _placed(parse_yaml(text, where), where)
    node = tree
    *parents, last = key_path.split(".")
    for part in parents:
        if isinstance(node.value, list):
            node = node.value[_index(part, node.value, where)]
        elif isinstance(node.value, dict):
            node = node.value.setdefault(part, Node({}, where))
        else:
            raise UserError(f"{where}: {part!r} lies below a plain value")
    if isinstance(node.value, list):
        node.value[_index(last, node.value, where)] = value
    elif isinstance(node.value, dict):
        node.value[last] = value
    else:
        raise UserError(f"{where}: {last!r} lies below a plain value")


def kind_of(value: object) -> str:
    """A value's kind in words."""
    if value is None:
        return "nothing"
    return {dict: "a mapping", list: "a list"}.get(type(value), type(value).__name__)


def _located(node: yaml.Node, name: str, budget: list[int]) -> Node:
    where = f"{name}:{node.start_mark.line + 1}"
    budget[0] -= 1
    if budget[0] < 0:
        raise UserError(f"{where}: more than {MAX_NODES} values; this is not a config file")
    if node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
        raise UserError(f"{where}: the YAML tag {node.tag} is not allowed; write a plain value")
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            at_key = f"{name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{at_key}: a key must be a word")
            key = key_node.value
            if key in found:
                raise UserError(f"{at_key}: key {key!r} given twice")
            found[key] = _located(value_node, name, budget)
        return Node(found, where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_located(item, name, budget) for item in node.value], where)
    if (
        isinstance(node, yaml.ScalarNode) and node.style is not None
    ):  # in quotes, or a block of text
        return Node(node.value, where, quoted=True)
    return Node(_scalar(node.value), where)


def _scalar(text: str) -> Scalar:
    """What a word without quotes means in YAML 1.2; `010` stays text, as YAML 1.1 reads 8."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text.lower()) and not re.fullmatch(r"[-+]?[0-9]+", text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _placed(node: Node, where: str) -> Node:
    """The same values, all written at `where`."""
    if isinstance(node.value, dict):
        return Node({key: _placed(item, where) for key, item in node.value.items()}, where)
    if isinstance(node.value, list):
        return Node([_placed(item, where) for item in node.value], where)
    return Node(node.value, where, node.quoted)


def _index(part: str, items: list[Node], where: str) -> int:
    for i, item in enumerate(items):
        if isinstance(item.value, dict) and "name" in item.value:
            named = item.value["name"].value
            if named == part:
                return i
    if re.fullmatch(r"[0-9]{1,6}", part) and int(part) < len(items):
        return int(part)
    raise UserError(f"{where}: {part!r} is no index or name in a list of {len(items)}")
