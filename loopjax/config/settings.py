"""Settings: what a frozen dataclass says about its fields, and what is read off it.

A field is declared once, `batch_size: Annotated[int, Setting("clips per step", at_least=0)] = 0`;
the checks of YAML files, the options of the command line and the JSON Schema all come from that.
(pydantic would do the generic half, but takes 0.4 s to import, ten times as long as this.)
"""

import collections.abc
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from loopjax.config.tree import Node, kind_of, to_plain
from loopjax.errors import UserError

T = TypeVar("T")
Schema = dict[str, Any]  # JSON Schema is JSON


@dataclass(frozen=True)
class Setting:
    """One field: its help, and the values that it takes beyond its type.

    Attributes:
        help: one line, for `--help`, the JSON Schema and the reader of the code.
        at_least: smallest number.
        above: numbers must exceed this.
        at_most: largest number.
        below: numbers must stay under this.
        pattern: a regular expression for the whole text.
        form: what `pattern` means, in words.
        filled: whether a list needs at least one item.
        formerly: an earlier name, so that an old file is told the new one.
    """

    help: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    pattern: str | None = None
    form: str = ""
    filled: bool = False
    formerly: str = ""


# Names become names of files and folders, so they can neither leave a folder nor hide in it, nor
# hold control characters, direction marks or what file systems refuse.
FileName = Annotated[
    str,
    Setting(
        pattern=r"(?![. -])"
        r"[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff/\\:*?\"<>|]{1,100}",
        form='a name of at most 100 characters without / \\ : * ? " < > |, not led by . - or space',
    ),
]


@dataclass(frozen=True)
class Field:
    """A field of a settings class, resolved.

    Attributes:
        name: as written.
        type: its annotation without `Annotated`.
        setting: its help and limits.
        default: its default; `dataclasses.MISSING` where it must be given.
    """

    name: str
    type: Any
    setting: Setting
    default: Any


def fields(cls: type) -> list[Field]:
    """The fields of a settings class."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        expected, settings = _unwrap(hints[field.name])
        helps = [setting for setting in settings if setting.help]
        found.append(Field(field.name, expected, helps[0] if helps else Setting(), default))
    return found


def build(expected: type[T], node: Node, key: str = "") -> T:
    """Checks a tree against a settings class and makes it.

    Args:
        expected: a frozen dataclass.
        node: what was written.
        key: full name of the place in the file, for errors.

    Raises:
        UserError: unknown or missing key, wrong type, value out of range; names where it stands,
            the full key and what was expected.
    """
    return _settings(expected, node, key)


def build_value(expected: Any, node: Node, key: str) -> Any:
    """Checks one value against an annotation and returns it in that type; see `build`."""
    expected, settings = _unwrap(expected)
    value = _typed(expected, node, key)
    for setting in settings:
        problem = _broken_limit(setting, value)
        if problem:
            raise _error(node, key, problem)
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean X?)' for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def join_key(key: str, name: str) -> str:
    """`embed` and `crops` -> `embed.crops`."""
    return f"{key}.{name}" if key else name


def json_schema(expected: Any) -> Schema:
    """The JSON Schema (draft 2020-12) of an annotation that `build_value` understands."""
    expected, settings = _unwrap(expected)
    schema = _type_schema(expected)
    for setting in settings:
        words = {
            "description": setting.help or None,
            "minimum": setting.at_least,
            "exclusiveMinimum": setting.above,
            "maximum": setting.at_most,
            "exclusiveMaximum": setting.below,
            "pattern": None if setting.pattern is None else f"^({setting.pattern})$",
            "minItems": 1 if setting.filled else None,
        }
        schema |= {word: value for word, value in words.items() if value is not None}
    return schema


def _unwrap(expected: Any) -> tuple[Any, tuple[Setting, ...]]:
    """An annotation without `Annotated`, and the settings that stood there."""
    if typing.get_origin(expected) is Annotated:
        inner, *notes = typing.get_args(expected)
        return inner, tuple(note for note in notes if isinstance(note, Setting))
    return expected, ()


def _typed(expected: Any, node: Node, key: str) -> Any:
    value = node.value
    if dataclasses.is_dataclass(expected):
        return _settings(typing.cast(type, expected), node, key)
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        choices = ", ".join(map(str, args))
        hint = nearest(str(to_plain(node)), map(str, args))
        raise _error(node, key, f"{to_plain(node)!r} is none of {choices}{hint}")
    if origin in (Union, types.UnionType):
        return _one_of(args, node, key)
    if _is_list(origin) and isinstance(value, list):
        return tuple(
            build_value(args[0], item, join_key(key, _item_name(item, i)))
            for i, item in enumerate(value)
        )
    if _is_mapping(origin) and isinstance(value, dict):
        for name, item in value.items():
            build_value(args[0], Node(name, item.where, quoted=True), join_key(key, name))
        return {n: build_value(args[1], item, join_key(key, n)) for n, item in value.items()}
    if expected is object:
        return to_plain(node)
    if expected is float and type(value) in (int, float):
        if math.isfinite(typing.cast(float, value)):
            return float(typing.cast(float, value))
        raise _error(node, key, f"expected a finite number, found {value}")
    if expected is bool and not node.quoted and isinstance(value, str):  # YAML 1.1's words
        word = value.lower()
        if word in ("yes", "on", "no", "off"):
            return word in ("yes", "on")
    if expected in (bool, int, str, type(None)) and type(value) is expected:
        return value
    raise _error(node, key, f"expected {describe(expected)}, found {_found(expected, node)}")


def _settings(cls: type[T], node: Node, key: str) -> T:
    if not isinstance(node.value, dict):
        raise _error(node, key, f"expected settings, found {kind_of(node.value)}")
    known = {field.name: field for field in fields(cls)}
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, child in node.value.items():
        if name not in known:
            full = join_key(key, name)
            renamed = [
                f"; it is now called {n!r}" for n, f in known.items() if f.setting.formerly == name
            ]
            hint = renamed[0] if renamed else nearest(name, known)
            raise UserError(f"{child.where}: unknown key {full!r}{hint}")
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in node.value:
            raise _error(node, key, f"needs the key {name!r}")
    given = {
        name: build_value(hints[name], child, join_key(key, name))
        for name, child in node.value.items()
    }
    return cls(**given)


def _one_of(choices: tuple[Any, ...], node: Node, key: str) -> Any:
    """The member of a union that takes the value; a number keeps its kind where it can."""
    possible = [choice for choice in choices if _is_readable(choice)]
    exact = [choice for choice in possible if _unwrap(choice)[0] is type(node.value)]
    errors = []
    for choice in [*exact, *possible]:
        try:
            return build_value(choice, node, key)
        except UserError as error:
            errors.append(error)
    real = [choice for choice in possible if choice is not type(None)]
    if exact or len(real) == 1:
        raise errors[0 if exact else possible.index(real[0])]
    words = " or ".join(map(describe, real))
    raise _error(node, key, f"expected {words}, found {_found(None, node)}")


def _broken_limit(setting: Setting, value: Any) -> str | None:
    """What is wrong with a value of the right type; None if nothing is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        limits = (
            (setting.at_least, "at least", lambda limit: value >= limit),
            (setting.above, "above", lambda limit: value > limit),
            (setting.at_most, "at most", lambda limit: value <= limit),
            (setting.below, "below", lambda limit: value < limit),
        )
        given = [(words, limit, keeps) for limit, words, keeps in limits if limit is not None]
        if not all(keeps(limit) for _, limit, keeps in given):
            wanted = " and ".join(f"{words} {limit:g}" for words, limit, _ in given)
            return f"expected a number {wanted}, found {value!r}"
    if (
        isinstance(value, str)
        and setting.pattern is not None
        and not re.fullmatch(setting.pattern, value)
    ):
        return f"expected {setting.form or setting.pattern}, found {value!r}"
    if setting.filled and isinstance(value, tuple) and not value:
        return "expected at least one item, found none"
    return None


def describe(expected: Any) -> str:
    """An annotation in words."""
    expected, _ = _unwrap(expected)
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        real = [a for a in args if a is not type(None) and _is_readable(a)]
        return " or ".join(map(describe, real))
    if _is_list(origin):
        return f"a list of {describe(args[0])}"
    if _is_mapping(origin):
        return "a mapping"
    if dataclasses.is_dataclass(expected):
        return "settings"
    return {bool: "bool (true or false)", type(None): "nothing"}.get(
        expected, getattr(expected, "__name__", str(expected))
    )


def _found(expected: Any, node: Node) -> str:
    value = to_plain(node)
    found = "nothing" if value is None else f"{kind_of(value)} ({value!r})"
    if expected is str and isinstance(value, bool | int | float):
        return f"{found}; put it in quotes"
    if expected in (int, None) and isinstance(value, str) and re.fullmatch("0[0-9]+", value):
        return (
            f"{found}; a leading zero may mean octal: write {int(value)}, or {value[0]}o{value[1:]}"
        )
    return found


def _is_readable(expected: Any) -> bool:
    """Whether a value of this annotation can stand in a file."""
    expected, _ = _unwrap(expected)
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        return any(map(_is_readable, args))
    if _is_list(origin):
        return _is_readable(args[0])
    return (
        origin is Literal
        or _is_mapping(origin)
        or dataclasses.is_dataclass(expected)
        or expected in (bool, int, float, str, object, type(None))
    )


def _is_list(origin: Any) -> bool:
    return origin in (tuple, list, collections.abc.Sequence)


def _is_mapping(origin: Any) -> bool:
    return origin in (dict, Mapping)


def _item_name(item: Node, index: int) -> str:
    """Detectors are called by their name in errors, as `--set` calls them."""
    if isinstance(item.value, dict) and "name" in item.value:
        name = item.value["name"].value
        if isinstance(name, str):
            return name
    return str(index)


def _error(node: Node, key: str, problem: str) -> UserError:
    return UserError(f"{node.where}: {key or 'the top level'}: {problem}")


def _type_schema(expected: Any) -> Schema:
    if dataclasses.is_dataclass(expected):
        cls = typing.cast(type, expected)
        hints = typing.get_type_hints(cls, include_extras=True)
        properties = {}
        for field in fields(cls):
            properties[field.name] = json_schema(hints[field.name])
            if field.default is not dataclasses.MISSING:
                properties[field.name]["default"] = plain(field.default)
        schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        required = [f.name for f in fields(cls) if f.default is dataclasses.MISSING]
        return schema | ({"required": required} if required else {})
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [json_schema(arg) for arg in args if _is_readable(arg)]}
    if _is_list(origin):
        return {"type": "array", "items": json_schema(args[0])}
    if _is_mapping(origin):
        keys = json_schema(args[0])
        names = {"propertyNames": keys} if "pattern" in keys else {}
        return {"type": "object", "additionalProperties": json_schema(args[1]), **names}
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return {"type": names[expected]} if expected in names else {}


def plain(value: Any) -> Any:
    """Settings as plain containers, ready for JSON or YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
