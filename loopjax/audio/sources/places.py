"""Addresses of sources: local paths, patterns, and any file system that fsspec knows."""

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from loopjax.errors import UserError
from loopjax.io.remote import is_address

MAX_EXPANSION = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str) -> Iterator[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` as the names that they stand for; others as they are.

    Raises:
        UserError: far too many.
    """
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < MAX_EXPANSION:
            raise UserError(f"{pattern}: {found[0]} is no range of at most {MAX_EXPANSION} numbers")
        choices = (f"{n:0{len(numbers[1])}d}" for n in range(first, last + 1))
    elif "," in found[1]:
        choices = iter(found[1].split(","))
    else:
        yield pattern
        return
    for choice in choices:
        yield from expand(pattern[: found.start()] + choice + pattern[found.end() :])


def local_matches(pattern: str) -> list[str]:
    """The local files of a pattern with braces and `*`, in order; what exists stands for itself."""
    if Path(pattern).exists():
        return [pattern]
    names = itertools.chain.from_iterable(
        sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207
        for name in expand(pattern)
    )
    return list(names)


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path on it.

    Raises:
        UserError: fsspec or the package for this kind of address is missing.
    """
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{address}: pip install 'loopjax[remote]'") from None
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address}: {str(error).splitlines()[0]}") from None


def open_place(place: str) -> BinaryIO:
    """Opens a local file or an address for reading.

    Raises:
        OSError: it cannot be read.
        UserError: what its address needs is missing.
    """
    if not is_address(place):
        return Path(place).open("rb")
    system, path = file_system(place)
    return cast(BinaryIO, system.open(path, "rb"))
