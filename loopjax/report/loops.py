"""The loops on a report page: which ones, where on the map, what can be heard and seen of them."""

import dataclasses
import os
import urllib.parse
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from loopjax.audio.loop import DecodeError
from loopjax.report.plane import principal_plane
from loopjax.report.ranking import RankedRows, Ranking
from loopjax.report.sound import Sound, hear

MAX_EMBEDDED = 200
MAX_EMBEDDED_BYTES = 8_000_000
MAX_MAP_POINTS = 1500
N_TYPICAL, N_NEAREST = 5, 3
MAP_SIZE = 320

AudioPolicy = Literal["auto", "embed", "link", "none"]


@dataclass(frozen=True)
class PageLoop:
    """One loop on the page.

    Attributes:
        i: its index there.
        row: its row in the ranking.
        id: of the embedding store.
        name: file name.
        path: as the scores table gives it.
        group: folder.
        score: higher = more anomalous.
        rank: 1 = the most anomalous.
        is_anomaly: flagged.
        percentile: of the score among the training scores.
        p_value: conformal.
        label: True = labeled as an anomaly.
        flags: what the decoder noticed.
        file: where the audio lies, if it was found.
        place: (x, y) on the map.
        near: indices of the nearest normal loops.
        sound: what was decoded.
        audio: how the page plays it.
        href: link of audio "link".
    """

    i: int
    row: int
    id: str
    name: str
    path: str
    group: str
    score: float
    rank: int
    is_anomaly: bool
    percentile: float | None
    p_value: float | None
    label: bool | None
    flags: tuple[str, ...]
    file: bytes | None
    place: tuple[float, float] | None = None
    near: tuple[int, ...] = ()
    sound: Sound | None = None
    audio: Literal["", "embed", "link"] = ""
    href: str = ""


class PageLoops:
    """Collects the loops that appear on the page, each once, and what is shown of them."""

    def __init__(
        self,
        ranking: Ranking,
        embeddings: RankedRows | None,
        roots: Sequence[Path],
    ):
        """Begins with no loop.

        Args:
            ranking: all scored loops.
            embeddings: theirs, or None: no map and no nearest loops.
            roots: folders that relative paths are looked up in.
        """
        self.ranking = ranking
        self._embeddings = None if embeddings is None or embeddings.n_missing else embeddings
        self.loops: list[PageLoop] = []
        self.notes: list[str] = []  # a sentence for everything that is missing
        known = (ranking.path_bytes, embeddings and embeddings.column("path_bytes"))
        self._exact = [paths for paths in known if paths is not None]
        self._roots = roots
        self._by_row: dict[int, int] = {}

    def add(self, rows: Iterable[int]) -> list[int]:
        """Returns the page's indices of rows of the ranking, adding loops not there yet."""
        return [self._index(int(row)) for row in rows]

    def _index(self, row: int) -> int:
        if row not in self._by_row:
            ranking = self.ranking
            path = ranking.paths[row].as_py()
            self._by_row[row] = len(self.loops)
            self.loops.append(
                PageLoop(
                    i=len(self.loops),
                    row=row,
                    id=ranking.ids[row].as_py(),
                    name=Path(path).name or path,
                    path=path,
                    group=ranking.group_of(row),
                    score=float(ranking.scores[row]),
                    rank=int(ranking.ranks[row]),
                    is_anomaly=bool(ranking.is_anomaly[row]),
                    percentile=_value(ranking.percentiles, row),
                    p_value=_value(ranking.p_values, row),
                    label=_value(ranking.labels, row),
                    flags=tuple(_value(ranking.flags, row) or ()),
                    file=self._find(row),
                )
            )
        return self._by_row[row]

    def _find(self, row: int) -> bytes | None:
        shown = Path(self.ranking.paths[row].as_py())
        exact = next(filter(None, (paths[row].as_py() for paths in self._exact)), None)
        choices = [Path(os.fsdecode(exact))] if exact else []
        choices += [root / shown for root in self._roots]  # an absolute path stays as it is
        choices.append(shown.absolute())
        return next((os.fsencode(choice) for choice in choices if choice.is_file()), None)

    def typical_rows(self) -> list[int]:
        """The rows with the lowest scores, at most one per group while groups last.

        Without embeddings, which say what they are typical of, none.
        """
        if self._embeddings is None:
            return []
        normal = np.flatnonzero(~self.ranking.is_anomaly)[::-1]
        seen: set[str] = set()
        first: list[int] = []
        rest: list[int] = []
        for row in normal[:500]:
            group = self.ranking.group_of(row)
            (rest if group in seen else first).append(int(row))
            seen.add(group)
        return (first + rest)[:N_TYPICAL]

    def add_neighbors(self, indices: Sequence[int]) -> list[int]:
        """Gives loops their nearest normal loops by cosine similarity; returns those."""
        normal = np.flatnonzero(~self.ranking.is_anomaly)
        if self._embeddings is None or len(normal) <= N_NEAREST:
            return []
        rows = np.array([self.loops[i].row for i in indices])
        found: dict[int, None] = {}
        for i, line in zip(indices, self._embeddings.nearest(rows, normal, N_NEAREST), strict=True):
            near = self.add(line)
            self.loops[i] = dataclasses.replace(self.loops[i], near=tuple(near))
            found |= dict.fromkeys(near)
        return list(found)

    def add_map_points(self) -> None:
        """Projects all loops to a plane; loops not listed are thinned to `MAX_MAP_POINTS`."""
        n = len(self.ranking.ids)
        if self._embeddings is None or n < 3:
            return
        rng = np.random.default_rng(0)
        extra = rng.permutation(n)[:MAX_MAP_POINTS] if n > MAX_MAP_POINTS else np.arange(n)
        shown = self.add(sorted({*extra.tolist(), *(loop.row for loop in self.loops)}))
        rows = np.array([self.loops[i].row for i in shown])
        plane, _ = principal_plane(self._embeddings.vectors(rows))
        low, high = np.quantile(plane, [0.005, 0.995], axis=0)
        scale = np.where(high > low, high - low, 1.0)
        for i, (x, y) in zip(shown, np.clip((plane - low) / scale, 0, 1), strict=True):
            place = (round(float(x) * MAP_SIZE, 1), round(MAP_SIZE - float(y) * MAP_SIZE, 1))
            self.loops[i] = dataclasses.replace(self.loops[i], place=place)

    def add_audio(
        self, heard: Sequence[int], n_pictured: int, policy: AudioPolicy, page_dir: Path
    ) -> None:
        """Adds outlines, spectrum thumbnails and playable audio.

        Args:
            heard: loops to hear, most wanted first; they use up the embedding budget in order.
            n_pictured: the first so many also get a thumbnail.
            policy: "embed" all of `heard`, "link" files, "none", or "auto" (embed up to 200
                previews or 8 MB, link the rest).
            page_dir: folder of the page; links are relative to it.
        """
        pictured = set(heard[:n_pictured])
        wanted = [i for i in dict.fromkeys(heard) if self.loops[i].file]
        n_embedded = {"embed": len(wanted), "auto": MAX_EMBEDDED}.get(policy, 0)

        def load(k: int) -> Sound | str:
            loop = self.loops[wanted[k]]
            try:
                return hear(loop.file or b"", loop.i in pictured, k < n_embedded)
            except DecodeError as error:
                return error.reason

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            sounds = list(pool.map(load, range(len(wanted))))
        spent = 0
        for i, sound in zip(wanted, sounds, strict=True):
            if isinstance(sound, str):
                continue
            size = len(sound.clip.data) if sound.clip else 0
            if sound.clip and (policy == "embed" or spent + size < MAX_EMBEDDED_BYTES):
                spent += size
                self.loops[i] = dataclasses.replace(self.loops[i], sound=sound, audio="embed")
            else:
                sound = dataclasses.replace(sound, clip=None)
                self.loops[i] = dataclasses.replace(self.loops[i], sound=sound)
        if policy in ("auto", "link"):
            self._link(page_dir)
        silent = sum(self.loops[i].file is None for i in pictured)
        if silent and policy != "none":
            self.notes.append(
                f"The audio of {silent} listed loops was not found; they cannot be played."
            )
        problems = [sound for sound in sounds if isinstance(sound, str)]
        if problems:
            self.notes.append(f"{len(problems)} loops could not be decoded again ({problems[0]}).")

    def _link(self, page_dir: Path) -> None:
        for loop in self.loops:
            if loop.file and not loop.audio:
                relative = os.path.relpath(loop.file, os.fsencode(page_dir.resolve()))
                href = urllib.parse.quote(relative)
                self.loops[loop.i] = dataclasses.replace(loop, audio="link", href=href)


def _value(column: pa.Array | None, row: int) -> Any:
    return None if column is None else column[row].as_py()
