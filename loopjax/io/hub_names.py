"""Names of encoders, models and stores on the Hugging Face Hub, and where pulled ones lie.

`hf://OWNER/NAME` is an encoder or a model, `hf://datasets/OWNER/NAME` a store; `@REVISION` behind
it is a commit, a branch or a tag. A name never causes a download: what `loopjax pull` has fetched
is found in the user's cache folder, below `loopjax/hub`, one folder per commit.
"""

import re
import urllib.parse
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from loopjax.errors import UserError

PREFIX = "hf://"
# Turned into a Path, the name has one slash less.
_FORM = re.compile(
    r"hf:/{1,2}(?P<datasets>datasets/)?(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository at one revision.

    Attributes:
        repository: `OWNER/NAME`.
        is_dataset: whether it lies among the data sets, as stores do.
        revision: commit, branch or tag.
    """

    repository: str
    is_dataset: bool = False
    revision: str = "main"

    def __str__(self) -> str:
        kind = "datasets/" if self.is_dataset else ""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{PREFIX}{kind}{self.repository}{revision}"

    @property
    def repo_type(self) -> str:
        """As huggingface_hub calls it."""
        return "dataset" if self.is_dataset else "model"

    @property
    def is_pinned(self) -> bool:
        """Whether it means the same files forever."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> "HubName":
        """The same repository at another revision."""
        return replace(self, revision=revision)

    @property
    def folder(self) -> Path:
        """Where the files of this commit lie once they are pulled."""
        return self._cache / self.revision

    @property
    def note(self) -> Path:
        """The file that says which commit a branch or tag was when it was last pulled."""
        return self._cache / "revisions" / urllib.parse.quote(self.revision, safe="")

    @property
    def _cache(self) -> Path:
        kind = "datasets--" if self.is_dataset else ""
        cache = platformdirs.user_cache_path("loopjax", appauthor=False) / "hub"
        return cache / (kind + self.repository.replace("/", "--"))


def is_hub_name(name: object) -> bool:
    """Whether something given as a name or path is a name of the Hub."""
    return str(name).startswith("hf:/")


def parse_hub_name(name: object) -> HubName:
    """Reads `hf://[datasets/]OWNER/NAME[@REVISION]`.

    Raises:
        UserError: it is none.
    """
    found = _FORM.fullmatch(str(name))
    if found is None:
        raise UserError(
            f"{name}: expected hf://OWNER/NAME or hf://datasets/OWNER/NAME, with @REVISION or not"
        )
    repository = f"{found['owner']}/{found['name']}"
    return HubName(repository, found["datasets"] is not None, found["revision"] or "main")


def pulled(name: object) -> HubName:
    """The commit that a name means on this machine; its files lie in `HubName.folder`.

    Raises:
        UserError: no such name, or it has not been pulled.
    """
    wanted = parse_hub_name(name)
    if not wanted.is_pinned:
        try:
            wanted = wanted.at(wanted.note.read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            raise _missing(wanted) from None
    if not wanted.is_pinned or not wanted.folder.is_dir():
        raise _missing(parse_hub_name(name))
    return wanted


def _missing(name: HubName) -> UserError:
    return UserError(f"{name} is not on this machine yet: loopjax pull {name}")
