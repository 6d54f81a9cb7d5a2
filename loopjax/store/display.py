"""A store in a notebook: its first rows, each with a player."""

import base64
import importlib.util
from pathlib import Path

import pyarrow as pa

from loopjax.errors import UserError
from loopjax.notebook import Markup, html_table

N_ROWS = 5
MAX_BYTES = 2 << 20  # of a file that is put into a notebook
_TYPES = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
}
_COLUMNS = ("path", "group", "duration_s", "flags")


def embeddings_html(table: pa.Table, shape: tuple[int, ...], encoder: str) -> str:
    """The first rows of a row table as HTML."""
    names = [name for name in _COLUMNS if name in table.column_names]
    rows = table.slice(0, N_ROWS).to_pylist()
    body = [(*(_cell(row[name]) for name in names), _player(row.get("path_bytes"))) for row in rows]
    numbers = " x ".join(map(str, shape))
    more = f", the first {N_ROWS}:" if len(table) > N_ROWS else ":"
    head = html_table(("Embeddings", "of"), [(numbers, encoder or "unknown origin")])
    return f"{head}{len(table)} loops{more}{html_table((*names, 'sound'), body)}"


def require_package(name: str) -> None:
    """Refuses what an optional package is needed for.

    Raises:
        UserError: names the package and how to get it.
    """
    if importlib.util.find_spec(name) is None:
        raise UserError(f"this needs {name}: pip install {name}, or 'loopjax[interop]'")


def _cell(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _player(path_bytes: bytes | None) -> str:
    """A player that holds the file itself, where that is small and a browser can play it."""
    path = Path(path_bytes.decode("utf-8", "surrogateescape")) if path_bytes else None
    if path is None or path.suffix.lower() not in _TYPES:
        return ""
    try:
        if path.stat().st_size > MAX_BYTES:
            return ""
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return ""
    kind = _TYPES[path.suffix.lower()]
    return Markup(f'<audio controls preload="none" src="data:{kind};base64,{data}"></audio>')
