"""Text files that name one audio file per line."""

# Names that are not UTF-8 must stay bytes, which pathlib does not hold.
# ruff: noqa: PTH100, PTH118, PTH120, PTH123
import os
from collections.abc import Iterator

LIST_EXTENSIONS = frozenset([b".txt", b".lst"])


def read_list(given: bytes) -> Iterator[bytes]:
    """Yields the path of each line once, relative ones joined to the list's folder."""
    base = os.path.dirname(given)
    seen: set[bytes] = set()
    with open(given, "rb") as lines:
        for line in lines:
            name = line.rstrip(b"\r\n")
            if not name.strip() or name.startswith(b"#"):
                continue
            path = os.path.join(base, name)
            absolute = os.path.abspath(path)
            if absolute not in seen:
                seen.add(absolute)
                yield path
