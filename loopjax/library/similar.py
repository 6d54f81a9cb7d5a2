"""Which loops of a store sound most like a given one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed
from loopjax.embedding.settings import as_encoder, config_of, space_of
from loopjax.encoders.load import load_encoder, load_text_encoder
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space
from loopjax.encoders.text import TextEncoder
from loopjax.errors import UserError
from loopjax.library.index import open_index
from loopjax.store.blocks import StoredRows, open_rows
from loopjax.store.read import Embeddings
from loopjax.store.schema import Project
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
    queries: str | Path | Sequence[str | Path] = (),
    k: int = 10,
    encoder: Encoder | str | Path | None = None,
    *,
    text: str | Sequence[str] = (),
    exact: bool = False,
) -> Matches:
    """Finds the loops of a store that are most similar to each query by cosine.

    The store is read once, in blocks, so that memory does not follow its size. Where it has an
    index (`loopjax index`), that answers queries by sound instead, nearly exactly.

    Args:
        store: folder of `loopjax embed` or of a run, or a file of embeddings.
        queries: each an audio file or a folder, which the store's encoder embeds, or the id or
            path of a row, which then does not find itself.
        k: loops per query.
        encoder: for audio and texts, where the one that the store names is not to be found any
            more; for texts its name or folder.
        text: descriptions of sounds instead of `queries`, for stores of an encoder with a text
            tower. Their cosines are those of the space that sounds and texts share.
        exact: whether to compare with every row, whatever index there is.

    Raises:
        UserError: no such store, file or row; an encoder of another space, or without texts;
            nothing in `queries` could be embedded.
    """
    if k < 1:
        raise UserError(f"{k} loops per query: expected at least 1")
    rows = open_rows(store)
    asked = [queries] if isinstance(queries, str | Path) else list(queries)
    texts = [text] if isinstance(text, str) else list(text)
    if bool(asked) == bool(texts):
        raise UserError(
            "give either sounds (an audio file, or the id or path of a row) or a text, not both"
            if asked
            else "no query: give an audio file, the id or path of a row, or a text"
        )
    if texts:
        joint = JointSpace.of(rows.metadata, encoder)
        names, best = texts, MostSimilar(joint.text.embed(texts), k)
        for block in rows.projected(joint.project):
            best.add(block)
        cosines, found = best.found()
    else:
        names, vectors, own = _resolve(rows, [str(query) for query in asked], encoder)
        index = None if exact else open_index(rows)
        if index is not None:
            cosines, found = index.search(vectors, k, own)
        else:
            best = MostSimilar(vectors, k, own)
            for block in rows.blocks():
                best.add(block.matrix)
            cosines, found = best.found()
    wanted, places = np.unique(found, return_inverse=True)  # -1 where there are fewer than k rows
    places = places.reshape(found.shape) - int(wanted[0] < 0)
    columns = [name for name in SHOWN if name in rows.columns]
    table = rows.take(wanted[wanted >= 0], columns)
    return Matches(similar_table(names, cosines, places, table))


@dataclass(frozen=True)
class JointSpace:
    """The space that the sounds of a store share with texts.

    Attributes:
        text: puts texts there.
        project: puts embeddings there.
    """

    text: TextEncoder
    project: Project

    @classmethod
    def of(cls, metadata: dict[str, str], encoder: Encoder | str | Path | None) -> "JointSpace":
        """The space of a store, by its metadata.

        Args:
            metadata: of the store.
            encoder: a name or a folder instead of the one that the store names.

        Raises:
            UserError: nobody knows the encoder, it is another, or it knows no texts.
        """
        space = _space(metadata, "texts")
        if encoder is not None and not isinstance(encoder, str | Path):
            raise UserError("texts need the name or the folder of an encoder, not a loaded one")
        config = config_of(space)
        place = encoder or config.encoder
        text = load_text_encoder(place)
        sounds = load_encoder(place, space.precision)
        _require_space(sounds, config, space)
        if sounds.joint_dim != text.config.projection_dim:
            raise UserError(
                f"encoder {place}: sounds are projected to {sounds.joint_dim} numbers, texts to "
                f"{text.config.projection_dim}"
            )
        return cls(text, sounds.project)


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
    space = _space(metadata, "audio")
    config = config_of(space)
    loaded = as_encoder(encoder or config.encoder, config)
    _require_space(loaded, config, space)
    return embed(list(sources), loaded, config)


def _space(metadata: dict[str, str], what: str) -> Space:
    space = Space.from_metadata(metadata)
    if space is None:
        raise UserError(
            f"nobody knows which encoder made these embeddings, so {what} cannot be compared with "
            "them: query by the id or path of a row"
        )
    return space


def _require_space(loaded: Encoder, config: EmbedConfig, space: Space) -> None:
    if differences := space_of(loaded, config).differences(space):
        raise UserError(
            f"encoder {loaded.id} is not the one that made the store: {'; '.join(differences)}"
        )


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
            raise UserError(
                f"{query}: neither an audio file nor the id or path of a row; descriptions of "
                "sounds are given as --text"
            )
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
