"""Options of the verbs that search and clean a store."""

from dataclasses import dataclass
from typing import Annotated

from loopjax.config.settings import Setting


@dataclass(frozen=True)
class DedupConfig:
    """What counts as a copy."""

    max_heard: Annotated[
        int,
        Setting(
            "pairs compared by listening, most similar first; of others embeddings decide",
            at_least=0,
        ),
    ] = 20_000
    cosine: Annotated[
        float | None,
        Setting(
            "unheard pairs are copies from here on; else from the store's own distribution",
            at_least=-1,
            at_most=1,
        ),
    ] = None


@dataclass(frozen=True)
class MislabelledConfig:
    """What the labels are."""

    column: Annotated[str, Setting("column of the store with the labels")] = "group"
    depth: Annotated[
        int, Setting("take only the first so many folders of a label; 0: all", at_least=0)
    ] = 0


@dataclass(frozen=True)
class TagConfig(MislabelledConfig):
    """What gets words: labels, or heaps of alike loops."""

    clusters: Annotated[
        int, Setting("find so many heaps of alike loops instead of folders; 0: folders", at_least=0)
    ] = 0
