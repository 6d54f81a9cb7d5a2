"""JSON that anybody may have written: bounded in size and depth, so that reading it is safe."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
MAX_DEPTH = 50


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that anybody may have written.

    It takes at most 64 times the file's size in memory.

    Raises:
        OSError: it cannot be read.
        ValueError: no JSON object, nested too deeply, or too large; says which.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    value = parse_json(content.decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def parse_json(text: str) -> Any:
    """The value of JSON text; few enough levels that nobody stumbles who walks through it.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError("nested too deeply")
    return value


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
