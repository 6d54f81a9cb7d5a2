"""Which loops of a store sound most like a given one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.embedding.chain import embed
from loopjax.embedding.settings import as_encoder, config_of, space_of
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space
from loopjax.errors import UserError
from loopjax.store.blocks import StoredRows, open_rows
from loopjax.store.read import Embeddings
from loopjax.store.similar import MostSimilar, similar_table

SHOWN = ("id", "path", "group", "duration_s")


@dataclass(frozen=True)
class Matches:
    """The loops found for each query, most similar first.

    Attributes:
        table: columns query, rank from 1, cosine, id, path, and group and duration_s where known.
    """

    table: pa.Table


def similar(
    store: str | Path,
    queries: str | Path | Sequence[str | Path],
    k: int = 10,
    encoder: Encoder | str | Path | None = None,
) -> Matches:
    """Finds the loops of a store that are most similar to each query, exactly, by cosine.

    The store is read once, in blocks, so that memory does not follow its size.

    Args:
        store: folder of `loopjax embed` or of a run, or a file of embeddings.
        queries: each an audio file or a folder, which the store's encoder embeds, or the id or
            path of a row, which then does not find itself.
        k: loops per query.
        encoder: for audio, where the one that the store names is not to be found any more.

    Raises:
        UserError: no such store, file or row; an encoder of another space; nothing in `queries`
            could be embedded.
    """
    if k < 1:
        raise UserError(f"{k} loops per query: expected at least 1")
    rows = open_rows(store)
    asked = [queries] if isinstance(queries, str | Path) else list(queries)
    if not asked:
        raise UserError("no query: give an audio file, or the id or path of a row")
    names, vectors, own = _resolve(rows, [str(query) for query in asked], encoder)
    best = MostSimilar(vectors, k, own)
    for block in rows.blocks():
        best.add(block.matrix)
    cosines, found = best.found()
    wanted, places = np.unique(found, return_inverse=True)  # -1 where there are fewer than k rows
    places = places.reshape(found.shape) - int(wanted[0] < 0)
    columns = [name for name in SHOWN if name in rows.columns]
    table = rows.take(wanted[wanted >= 0], columns)
    return Matches(similar_table(names, cosines, places, table))


def embed_like(
    metadata: dict[str, str], sources: Sequence[str], encoder: Encoder | str | Path | None = None
) -> Embeddings:
    """Embeds audio exactly as a store's embeddings were made.

    Args:
        metadata: of the store.
        sources: audio files and folders.
        encoder: a name, a folder or a loaded one, instead of the one that the store names.

    Raises:
        UserError: the encoder cannot be found or is another; nothing could be embedded.
    """
    space = Space.from_metadata(metadata)
    if space is None:
        raise UserError(
            "nobody knows which encoder made these embeddings, so audio cannot be compared with "
            "them: query by the id or path of a row"
        )
    config = config_of(space)
    loaded = as_encoder(encoder or config.encoder, config)
    if differences := space_of(loaded, config).differences(space):
        raise UserError(
            f"encoder {loaded.id} is not the one that made the store: {'; '.join(differences)}"
        )
    return embed(list(sources), loaded, config)


def _resolve(
    rows: StoredRows, queries: Sequence[str], encoder: Encoder | str | Path | None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, vectors [Q, D] and own rows of queries; rows of the store first."""
    at = rows.find(queries)
    by_path = rows.find(queries, "path")
    stored = {q: int(i if i >= 0 else p) for q, i, p in zip(queries, at, by_path, strict=True)}
    # A file that is there is heard again: it may have changed since.
    audio = [query for query in queries if stored[query] < 0 or Path(query).exists()]
    for query in audio:
        if not Path(query).exists():
            raise UserError(f"{query}: neither an audio file nor the id or path of a row")
    known = [query for query in queries if query not in audio]
    own = np.asarray([stored[query] for query in known], np.int64)
    vectors = [rows.vectors(own)] if known else []
    names = list(known)
    if audio:
        embedded = embed_like(rows.metadata, audio, encoder)
        names += embedded.table["path"].to_pylist()
        vectors.append(embedded.matrix)
        own = np.concatenate([own, np.full(len(embedded), -1)])
    return names, np.concatenate(vectors), own
