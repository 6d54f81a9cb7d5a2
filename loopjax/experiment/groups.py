"""Groups of loops: folders relative to their source, down to a depth."""

import dataclasses

import pyarrow as pa

from loopjax.store.read import Embeddings


def cut_groups(embeddings: Embeddings, depth: int) -> Embeddings:
    """Embeddings whose groups keep only the first `depth` folders; 0 keeps them whole."""
    table = embeddings.table
    if depth == 0 or "group" not in table.column_names:
        return embeddings
    groups = [
        None if group is None else "/".join(group.split("/")[:depth])
        for group in table["group"].to_pylist()
    ]
    place = table.column_names.index("group")
    table = table.set_column(place, "group", pa.array(groups, pa.string()))
    return dataclasses.replace(embeddings, table=table)
