"""Groups of loops: folders relative to their source, down to a depth."""

from typing import TypeVar

import pyarrow as pa

from loopjax.audio.loop import cut_group
from loopjax.store.read import Embeddings
from loopjax.store.stream import StoredEmbeddings

AnyEmbeddings = TypeVar("AnyEmbeddings", bound=Embeddings | StoredEmbeddings)


def cut_groups(embeddings: AnyEmbeddings, depth: int) -> AnyEmbeddings:
    """Embeddings whose groups keep only the first `depth` folders; 0 keeps them whole."""
    table = embeddings.columns(["group"])
    if depth == 0 or "group" not in table.column_names:
        return embeddings
    groups = [
        None if group is None else cut_group(group, depth) for group in table["group"].to_pylist()
    ]
    return embeddings.replacing("group", pa.array(groups, pa.string()))
