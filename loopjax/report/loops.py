"""The loops on a report page: which ones, where on the map, what can be heard and seen of them."""

import base64
import os
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loopjax.audio import preview
from loopjax.audio.loop import DecodeError
from loopjax.errors import UserError
from loopjax.evaluation.metrics import principal_plane
from loopjax.store.read import read_embeddings
from loopjax.store.scores import read_scores

MAX_EMBEDDED = 200
MAX_EMBEDDED_BYTES = 8_000_000
MAX_MAP_POINTS = 1500
MAX_MAP_ROWS = 50_000  # above, the whole matrix would have to be in memory for a thumbnail
N_TYPICAL, N_NEAREST = 5, 3
WAVE_COLUMNS, MEL_COLUMNS, MEL_BANDS = 120, 120, 36


@dataclass
class PageLoop:
    """One loop on the page; `i` is its index there."""

    i: int
    row: int  # in the scores table, sorted by rank
    id: str
    name: str
    path: str
    group: str
    score: float
    rank: int
    is_anomaly: bool
    percentile: float | None
    p_value: float | None
    label: bool | None  # True = labeled as an anomaly
    flags: list[str]
    file: bytes | None  # where the audio lies, if it was found
    x: float | None = None
    y: float | None = None
    near: list[int] = field(default_factory=list)
    audio: str = ""  # "", "embed" or "link"
    href: str = ""
    seconds: float | None = None
    whole_s: float | None = None
    is_cut: bool = False
    wave: str = ""
    mel: str = ""
    clip: tuple[bytes, str] | None = None


@dataclass(frozen=True)
class RankedScores:
    """The scores table, finite rows only, oddest first."""

    ids: list[str]
    paths: list[str]
    groups: list[str]
    scores: np.ndarray
    ranks: list[int]
    is_anomaly: np.ndarray
    optional: dict[str, list[Any] | None]
    metadata: dict[str, str]
    threshold: float | None


def read_ranking(path: Path) -> RankedScores:
    """Reads a scores table; rows without a finite score are left out.

    Raises:
        UserError: unreadable file, a missing column, or no scored loop.
    """
    stored = read_scores(path)
    table = stored.table
    names = set(table.column_names)
    if missing := {"id", "path"} - names:
        raise UserError(f"{path} has no column {min(missing)!r}")
    score = np.asarray(table["score"].to_numpy(zero_copy_only=False), float)
    order = np.argsort(-np.where(np.isfinite(score), score, -np.inf), kind="stable")
    order = order[np.isfinite(score[order])]
    if not len(order):
        raise UserError(f"{path} holds no scored loop")
    table, score = table.take(order), score[order]

    def column(name: str) -> list[Any] | None:
        return table[name].to_pylist() if name in names else None

    flagged = column("is_anomaly")
    odd = np.array([bool(v) for v in flagged]) if flagged else np.zeros(len(score), bool)
    threshold = float(stored.metadata["threshold"]) if "threshold" in stored.metadata else None
    if threshold is None and odd.any():
        threshold = float(score[odd].min())
    ids, paths = [str(v) for v in column("id") or []], [str(v) for v in column("path") or []]
    groups = [
        Path(path).parent.name if given is None else given
        for given, path in zip(column("group") or [None] * len(ids), paths, strict=True)
    ]
    optional = {
        "percentile": column("percentile"),
        "p_value": column("p_value"),
        "label": column("is_labeled"),
        "flags": column("flags"),
        "path_bytes": column("path_bytes"),
    }
    ranks = column("rank") or list(range(1, len(ids) + 1))
    return RankedScores(ids, paths, groups, score, ranks, odd, optional, stored.metadata, threshold)


def read_matrix(
    embeddings: Any, store: Path, scores: RankedScores, notes: list[str]
) -> tuple[np.ndarray | None, dict[str, bytes]]:
    """Embeddings in the order of the scores (or None with a note), and file paths by id."""
    if embeddings is None and store.exists():
        if len(scores.ids) > MAX_MAP_ROWS:
            notes.append(f"The map is left out: more than {MAX_MAP_ROWS} loops.")
            return None, {}
        embeddings = read_embeddings(store)
    if embeddings is None:
        notes.append("No embeddings in this run folder: no map and no nearest loops.")
        return None, {}
    table = embeddings.table
    known = {str(key): i for i, key in enumerate(table["id"].to_pylist())}
    files: dict[str, bytes] = {}
    if "path_bytes" in table.column_names:
        files = dict(zip(known, table["path_bytes"].to_pylist(), strict=True))
    rows = [known.get(key) for key in scores.ids]
    absent = sum(row is None for row in rows)
    if absent:
        notes.append(f"{absent} scored loops have no embedding here: no map and no nearest loops.")
        return None, files
    return np.asarray(embeddings.matrix, np.float32)[[r for r in rows if r is not None]], files


class PageLoops:
    """Collects the loops that appear on the page, each once, and what is shown of them."""

    def __init__(
        self,
        scores: RankedScores,
        matrix: np.ndarray | None,
        files: Mapping[str, bytes],
        roots: Sequence[Path],
    ):
        self.scores, self.matrix = scores, matrix
        self.loops: list[PageLoop] = []
        self._files, self._roots = files, roots
        self._by_row: dict[int, int] = {}

    def add(self, rows: Iterable[int]) -> list[PageLoop]:
        """Returns the page's loops for rows of the scores table, adding those not there yet."""
        return [self._loop(int(row)) for row in rows]

    def _loop(self, row: int) -> PageLoop:
        if row not in self._by_row:
            s = self.scores
            optional = {
                name: values[row] if values else None for name, values in s.optional.items()
            }
            self._by_row[row] = len(self.loops)
            path = s.paths[row]
            self.loops.append(
                PageLoop(
                    i=len(self.loops),
                    row=row,
                    id=s.ids[row],
                    name=Path(path).name or path,
                    path=path,
                    group=s.groups[row],
                    score=float(s.scores[row]),
                    rank=int(s.ranks[row]),
                    is_anomaly=bool(s.is_anomaly[row]),
                    percentile=optional["percentile"],
                    p_value=optional["p_value"],
                    label=optional["label"],
                    flags=list(optional["flags"] or ()),
                    file=self._find(row, optional["path_bytes"]),
                )
            )
        return self.loops[self._by_row[row]]

    def _find(self, row: int, given: bytes | None) -> bytes | None:
        shown = Path(self.scores.paths[row])
        exact = given or self._files.get(self.scores.ids[row])
        choices = [Path(os.fsdecode(exact))] if exact else []
        choices += [root / shown for root in self._roots]  # an absolute path stays as it is
        choices.append(shown.absolute())
        return next((os.fsencode(choice) for choice in choices if choice.is_file()), None)

    def typical_rows(self) -> list[int]:
        """The loops with the lowest scores, at most one per group while groups last."""
        normal = np.flatnonzero(~self.scores.is_anomaly)[::-1]
        seen: set[str] = set()
        first: list[int] = []
        rest: list[int] = []
        for row in normal[:500]:
            group = self.scores.groups[row]
            (rest if group in seen else first).append(int(row))
            seen.add(group)
        return (first + rest)[:N_TYPICAL]

    def add_neighbors(self, loops: Sequence[PageLoop]) -> list[PageLoop]:
        """Gives every listed loop its nearest normal loops by cosine similarity; returns those."""
        normal = np.flatnonzero(~self.scores.is_anomaly)
        found: dict[int, PageLoop] = {}
        if self.matrix is None or len(normal) <= N_NEAREST:
            return []
        unit = self.matrix / np.maximum(np.linalg.norm(self.matrix, axis=1, keepdims=True), 1e-12)
        similarity = unit[[loop.row for loop in loops]] @ unit[normal].T
        for loop, line in zip(loops, similarity, strict=True):
            line[normal == loop.row] = -np.inf
            nearest = normal[np.argsort(-line, kind="stable")[:N_NEAREST]]
            near = self.add(nearest)
            loop.near = [other.i for other in near]
            found |= {other.i: other for other in near}
        return list(found.values())

    def add_map_points(self) -> None:
        """Projects all loops to a plane; loops not listed are thinned to `MAX_MAP_POINTS`."""
        if self.matrix is None or len(self.matrix) < 3:
            return
        rng = np.random.default_rng(0)
        n = len(self.matrix)
        extra = rng.permutation(n)[:MAX_MAP_POINTS] if n > MAX_MAP_POINTS else np.arange(n)
        shown = self.add(sorted({*extra.tolist(), *(loop.row for loop in self.loops)}))
        plane, _ = principal_plane(self.matrix[[loop.row for loop in shown]])
        low, high = np.quantile(plane, [0.005, 0.995], axis=0)
        scale = np.where(high > low, high - low, 1.0)
        place = np.clip((plane - low) / scale, 0, 1)
        for loop, (x, y) in zip(shown, place, strict=True):
            loop.x, loop.y = round(float(x) * 320, 1), round(320 - float(y) * 320, 1)

    def add_audio(
        self,
        heard: Sequence[PageLoop],
        n_pictured: int,
        policy: str,
        page_dir: Path,
        notes: list[str],
    ) -> None:
        """Adds outlines, mel thumbnails and playable audio.

        Args:
            heard: loops to hear, most wanted first; they use up the embedding budget in order.
            n_pictured: the first so many also get a mel thumbnail.
            policy: "embed" all of `heard`, "link" files, "none", or "auto" (embed up to 200
                previews or 8 MB, link the rest).
            page_dir: folder of the page; links are relative to it.
            notes: receives a sentence for what is missing.
        """
        pictured = {loop.i for loop in heard[:n_pictured]}
        wanted = list({loop.i: loop for loop in heard if loop.file}.values())
        n_embedded = {"embed": len(wanted), "auto": MAX_EMBEDDED}.get(policy, 0)
        jobs = [(loop, loop.i in pictured, k < n_embedded) for k, loop in enumerate(wanted)]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            problems = [p for p in pool.map(_load, *zip(*jobs, strict=True)) if p] if jobs else []
        spent = 0
        for loop in wanted:
            if loop.clip and (policy == "embed" or spent + len(loop.clip[0]) < MAX_EMBEDDED_BYTES):
                spent += len(loop.clip[0])
                loop.audio = "embed"
            else:
                loop.clip = None
        for loop in self.loops:
            if loop.file and not loop.audio and policy in ("auto", "link"):
                relative = os.path.relpath(loop.file, os.fsencode(page_dir.resolve()))
                loop.audio, loop.href = "link", urllib.parse.quote(relative)
        silent = sum(loop.file is None for loop in heard[:n_pictured])
        if silent and policy != "none":
            notes.append(
                f"The audio of {silent} listed loops was not found; they cannot be played."
            )
        if problems:
            notes.append(f"{len(problems)} loops could not be decoded again ({problems[0]}).")


def _load(loop: PageLoop, pictured: bool, embedded: bool) -> str | None:
    """Decodes one loop and fills in what the page shows of it; returns a reason on failure."""
    try:
        sound = preview.read_preview(loop.file or b"")
    except DecodeError as error:
        return error.reason
    loop.seconds = len(sound.samples) / preview.PREVIEW_RATE_HZ
    loop.whole_s, loop.is_cut = sound.duration_s, sound.is_cut
    loop.wave = _wave_path(sound.samples)
    if pictured:
        picture = preview.mel_thumbnail(sound.samples, MEL_COLUMNS, MEL_BANDS)
        loop.mel = "data:image/png;base64," + base64.b64encode(preview.png(picture)).decode()
    if embedded:
        loop.clip = preview.encode_audio(sound.samples)
    return None


def _wave_path(samples: np.ndarray) -> str:
    """SVG path of vertical strokes in a box of WAVE_COLUMNS x 32."""
    pairs = 16 - preview.outline(samples, WAVE_COLUMNS) * 15.5
    return "".join(
        f"M{i}.5 {high:.1f}V{max(low, high + 0.6):.1f}" for i, (low, high) in enumerate(pairs)
    )
