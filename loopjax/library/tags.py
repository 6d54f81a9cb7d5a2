"""What folders, or heaps of alike loops, sound like in given words, without any training.

Sounds and words meet in the space of a CLAP encoder: a folder gets the mean of its loops there, and
the words' probabilities follow from cosines as CLAP was trained (Radford et al. 2021,
arXiv 2103.00020, section 3.1; the sentence around a word is LAION's).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import softmax
from sklearn.cluster import MiniBatchKMeans

from loopjax.errors import UserError
from loopjax.library.labels import labels_of
from loopjax.library.similar import JointSpace
from loopjax.store.blocks import StoredRows, open_rows
from loopjax.store.similar import unit_rows

SENTENCE = "This is a sound of {}."
PASSES = 3  # of the clustering over the store


@dataclass(frozen=True)
class Tags:
    """The words for each folder or heap, the most probable first.

    Attributes:
        table: columns label, n_loops, rank from 1, tag, probability (among the given words),
            cosine, and example (path of the loop nearest to the middle).
    """

    table: pa.Table


def tag(
    store: str | Path,
    words: Sequence[str],
    column: str = "group",
    depth: int = 0,
    clusters: int = 0,
    encoder: str | Path | None = None,
    seed: int = 0,
) -> Tags:
    """Says in given words what the folders of a store, or heaps of alike loops, sound like.

    Args:
        store: folder of `loopjax embed` or of a run, made with an encoder that has a text tower.
        words: such as "kick drum" and "warm pad".
        column: of the store with the folders; loops where it is empty are left out.
        depth: take only the first so many folders of a label; 0: all.
        clusters: find so many heaps of alike loops instead of using folders; 0: use folders.
        encoder: name or folder, where the one that the store names is not to be found any more.
        seed: of the clustering.

    Raises:
        UserError: no such store or column, no words, an encoder without texts, or more heaps than
            loops.
    """
    words = list(dict.fromkeys(word.strip() for word in words))
    if not words or "" in words:
        raise UserError("tags: give at least one word, and no empty one")
    rows = open_rows(store)
    joint = JointSpace.of(rows.metadata, encoder)
    texts = joint.text.embed([SENTENCE.format(word) for word in words])
    if clusters:
        names, of_row = _clusters(rows, joint, clusters, seed)
    else:
        names, of_row = labels_of(rows, column, depth)
    counts = np.bincount(of_row[of_row >= 0], minlength=len(names))
    middles = np.zeros((len(names), texts.shape[1]))
    for members, block in _blocks(rows, joint, of_row):
        np.add.at(middles, members[members >= 0], block[members >= 0])
    middles = unit_rows(middles)
    nearest, example = np.full(len(names), -np.inf), np.zeros(len(names), np.int64)
    start = 0
    for members, block in _blocks(rows, joint, of_row):
        cosines = np.where(members < 0, -np.inf, (block * middles[members]).sum(axis=1))
        order = np.argsort(cosines, kind="stable")  # of a label's rows here, the nearest comes last
        best = np.full(len(names), -1)
        best[members[order]] = order
        better = np.flatnonzero(best >= 0)
        better = better[cosines[best[better]] > nearest[better]]
        nearest[better], example[better] = cosines[best[better]], start + best[better]
        start += len(block)
    cosines = middles @ texts.T
    probability = softmax(joint.text.logit_scale * cosines, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")
    label, rank = np.divmod(np.arange(order.size), len(words))
    places = label, order[label, rank]
    paths = rows.take(example, ["path"])["path"].to_pylist() if "path" in rows.columns else None
    columns = {
        "label": pa.array(names[label].tolist(), pa.string()),
        "n_loops": pa.array(counts[label]),
        "rank": pa.array(rank + 1),
        "tag": pa.array([words[i] for i in places[1]], pa.string()),
        "probability": pa.array(probability[places]),
        "cosine": pa.array(cosines[places]),
    }
    if paths is not None:
        columns["example"] = pa.array([paths[i] for i in label], pa.string())
    return Tags(pa.table(columns))


def _blocks(
    rows: StoredRows, joint: JointSpace, of_row: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels [n] and projections [n, P] of consecutive rows."""
    start = 0
    for block in rows.projected(joint.project):
        yield of_row[start : start + len(block)], block
        start += len(block)


def _clusters(
    rows: StoredRows, joint: JointSpace, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Names and members of heaps of alike loops, the largest first."""
    if not 1 <= n <= rows.n_rows:
        raise UserError(f"{n} clusters of {rows.n_rows} loops: expected 1 to as many as loops")
    first = next(rows.projected(joint.project))
    if n > len(first):
        raise UserError(f"{n} clusters: at most {len(first)} can be told apart")
    means = MiniBatchKMeans(n, random_state=seed)
    for _ in range(PASSES):
        for block in rows.projected(joint.project):
            means.partial_fit(block)
    found = np.concatenate([means.predict(block) for block in rows.projected(joint.project)])
    sizes = np.bincount(found, minlength=n)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    place = np.zeros(n, np.int64)
    place[order] = np.arange(len(order))
    return np.array([f"cluster {i + 1}" for i in range(len(order))]), place[found]
