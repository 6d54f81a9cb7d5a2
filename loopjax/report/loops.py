"""The loops on a report page: where on the map, what is near, what can be heard and seen of them.

A loop is known by its row in the ranking, so loop 0 is the most anomalous one.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from loopjax.audio.loop import DecodeError
from loopjax.audio.preview import Clip, Copied
from loopjax.report.plane import principal_plane
from loopjax.report.ranking import RankedRows, Ranking
from loopjax.report.sound import Sound, hear

MAX_LOOPS = 200_000  # that a page knows: some 30 MB
MAX_EMBEDDED = 400
MAX_EMBEDDED_BYTES = 8_000_000
MAX_MAP_POINTS = 1500
N_TYPICAL, N_NEAREST = 5, 3
MAP_SIZE = 320
EXTENSIONS = {"audio/mpeg": ".mp3", "audio/ogg": ".ogg", "audio/flac": ".flac"}

AudioPolicy = Literal["auto", "embed", "files", "link", "none"]
Save = Callable[[str, bytes], None]  # a file of this name, beside the page


class PageLoops:
    """What a page shows of ranked loops, by their rows in the ranking.

    Attributes:
        ranking: all scored loops.
        near: row -> its nearest normal loops.
        places: row -> (x, y) on the map.
        sounds: row -> what was decoded.
        copied: rows whose playable copies lie beside the page.
        notes: a sentence for everything that is missing.
    """

    def __init__(self, ranking: Ranking, embeddings: RankedRows | None, roots: Sequence[Path]):
        """Begins with nothing but the ranking.

        Args:
            ranking: all scored loops.
            embeddings: theirs, or None: no map and no nearest loops.
            roots: folders that relative paths are looked up in.
        """
        self.ranking = ranking
        self._embeddings = None if embeddings is None or embeddings.n_missing else embeddings
        known = (ranking.path_bytes, embeddings and embeddings.column("path_bytes"))
        self._exact = [paths for paths in known if paths is not None]
        self._roots = roots
        self._files: dict[int, bytes | None] = {}
        self.near: dict[int, tuple[int, ...]] = {}
        self.places: dict[int, tuple[float, float]] = {}
        self.sounds: dict[int, Sound] = {}
        self.copied: set[int] = set()
        self.notes: list[str] = []

    def file(self, row: int) -> bytes | None:
        """Where the audio of a loop lies; None if it was not found."""
        if row not in self._files:
            shown = self.ranking.paths[row].as_py()
            exact = next(filter(None, (paths[row].as_py() for paths in self._exact)), None)
            choices = [exact] if exact else []
            # An absolute path stays as it is.
            choices += [os.fsencode(root / shown) for root in (*self._roots, Path.cwd())]
            self._files[row] = next(filter(os.path.isfile, choices), None)
        return self._files[row]

    def typical(self) -> list[int]:
        """The rows with the lowest scores, at most one per group while groups last.

        Without embeddings, which say what they are typical of, none.
        """
        if self._embeddings is None:
            return []
        normal = np.flatnonzero(~self.ranking.is_anomaly)[::-1]
        seen: set[str] = set()
        first: list[int] = []
        rest: list[int] = []
        for row in normal[:500].tolist():
            group = self.ranking.group_of(row)
            (rest if group in seen else first).append(row)
            seen.add(group)
        return (first + rest)[:N_TYPICAL]

    def find_near(self, rows: Sequence[int]) -> list[int]:
        """Looks up the nearest normal loops of some by cosine; returns all that were found."""
        normal = np.flatnonzero(~self.ranking.is_anomaly)
        if self._embeddings is None or len(normal) <= N_NEAREST or not rows:
            return []
        found = self._embeddings.nearest(np.array(rows), normal, N_NEAREST).tolist()
        self.near |= {row: tuple(line) for row, line in zip(rows, found, strict=True)}
        return list(dict.fromkeys(near for line in found for near in line))

    def sounds_like(self, row: int) -> str:
        """The group that most of the nearest normal loops are in, unless it is the loop's own."""
        counts = Counter(self.ranking.group_of(near) for near in self.near.get(row, ()))
        group, count = counts.most_common(1)[0] if counts else ("", 0)
        return group if count > N_NEAREST // 2 and group != self.ranking.group_of(row) else ""

    def place(self) -> None:
        """Puts loops on their principal plane; of many, the flagged ones and a sample."""
        n = len(self.ranking.ids)
        if self._embeddings is None or n < 3:
            return
        rows = np.arange(n)
        if n > MAX_MAP_POINTS:
            flagged = np.flatnonzero(self.ranking.is_anomaly)[: MAX_MAP_POINTS // 3]
            sample = np.random.default_rng(0).permutation(n)[: MAX_MAP_POINTS - len(flagged)]
            rows = np.unique(np.concatenate([flagged, sample]))
        plane, _ = principal_plane(self._embeddings.vectors(rows))
        low, high = np.quantile(plane, [0.005, 0.995], axis=0)
        scale = np.where(high > low, high - low, 1.0)
        for row, (x, y) in zip(rows.tolist(), np.clip((plane - low) / scale, 0, 1), strict=True):
            self.places[row] = (
                round(float(x) * MAP_SIZE, 1),
                round(MAP_SIZE - float(y) * MAP_SIZE, 1),
            )

    def shown_rows(self) -> np.ndarray:
        """The rows that the page knows, ascending: all, or the first and what belongs to them."""
        n = len(self.ranking.ids)
        if n <= MAX_LOOPS:
            return np.arange(n)
        further = {*self.places, *self.sounds, *(j for near in self.near.values() for j in near)}
        self.notes.append(f"This page knows the {MAX_LOOPS} most anomalous loops.")
        return np.unique(np.concatenate([np.arange(MAX_LOOPS), np.array(sorted(further), int)]))

    def hear(self, wanted: Iterable[int], policy: AudioPolicy, save: Save) -> None:
        """Decodes loops: outlines, pictures of the spectrum, and copies that the page can play.

        Args:
            wanted: rows, most wanted first.
            policy: copies inside of the page ("embed"), beside it ("files"), whichever suits their
                number and size ("auto"), or none ("link", "none").
            save: writes a file beside the page.
        """
        rows = [row for row in dict.fromkeys(wanted) if self.file(row)]
        beside = policy == "files" or (policy == "auto" and len(rows) > MAX_EMBEDDED)
        problems: list[str] = []
        spent = 0
        copied = None if policy in ("link", "none") else "quick" if beside else "small"
        for row, sound in zip(rows, _heard(map(self.file, rows), copied), strict=True):
            if isinstance(sound, str):
                problems.append(sound)
                continue
            spent += len(sound.clip.data) if sound.clip else 0
            self.sounds[row] = self._saved(row, sound, save) if beside else sound
            if policy == "auto" and not beside and spent > MAX_EMBEDDED_BYTES:
                beside = True
                for earlier, held in self.sounds.items():
                    self.sounds[earlier] = self._saved(earlier, held, save)
        if problems:
            self.notes.append(f"{len(problems)} loops could not be decoded again ({problems[0]}).")

    def _saved(self, row: int, sound: Sound, save: Save) -> Sound:
        """The same without what now lies in files beside the page."""
        name = self.file_name(row)
        save(f"{name}.png", sound.picture)
        if sound.clip is None:
            return dataclasses.replace(sound, picture=b"")
        save(name + EXTENSIONS[sound.clip.mime_type], sound.clip.data)
        self.copied.add(row)
        return dataclasses.replace(sound, picture=b"", clip=Clip(b"", sound.clip.mime_type))

    def file_name(self, row: int) -> str:
        """Of the files beside the page that belong to a loop, without extension."""
        return hashlib.sha256(self.ranking.ids[row].as_py().encode()).hexdigest()[:16]


def _heard(files: Iterable[bytes | None], copied: Copied | None) -> Iterable[Sound | str]:
    """Sounds in order, or why there is none; decoded by several threads, few of them held."""

    def load(file: bytes | None) -> Sound | str:
        try:
            return hear(file or b"", copied)
        except DecodeError as error:
            return error.reason

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        waiting = []
        for file in files:
            waiting.append(pool.submit(load, file))
            if len(waiting) > 64:
                yield waiting.pop(0).result()
        for sound in waiting:
            yield sound.result()
