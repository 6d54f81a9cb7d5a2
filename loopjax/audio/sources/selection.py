"""Which files of a folder or list are taken."""

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class Selection:
    """Choices that apply to every folder and list.

    Attributes:
        include: shell patterns; where there are any, a file must match one.
        exclude: shell patterns of files and folders to leave out.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def takes(self, relative: str) -> bool:
        """Whether a path, relative to its source and with `/` between its parts, is taken.

        A pattern without `/` may match the name or any folder above it, one with `/` the whole
        path, in which `*` also stands for `/`. Case does not matter.
        """
        if any(_matches(relative, pattern) for pattern in self.exclude):
            return False
        return not self.include or any(_matches(relative, pattern) for pattern in self.include)


def _matches(relative: str, pattern: str) -> bool:
    path, pattern = relative.lower(), pattern.lower()
    if "/" in pattern:
        return fnmatch(path, pattern.removeprefix("./"))
    return any(fnmatch(part, pattern) for part in path.split("/"))
