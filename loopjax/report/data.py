"""What a page's script knows of the loops: columns rather than objects, so that many are quick."""

import base64
import os
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loopjax.report.loops import EXTENSIONS, AudioPolicy, PageLoops
from loopjax.report.sound import HIGHEST_HZ, LOWEST_HZ, Sound

# What JSON can say; read only, so that lists of numbers count too.
Plain = (
    None | bool | int | float | str
    | Sequence["Plain"] | Mapping[str, "Plain"] | Mapping[int, "Plain"]
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """A row of one of the page's further lists.

    Attributes:
        row: the loop, by its row in the ranking.
        text: what the list says of it.
        mark: "keep" or "reject" where the list proposes one.
    """

    row: int
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Lists:
    """What the page lists beside the ranking.

    Attributes:
        typical: rows that show what is normal.
        duplicates: copies, set by set.
        mislabelled: suspicious loops, the most suspicious first.
        reasons: row -> where a loop stands out, and what it sounds like.
    """

    typical: Sequence[int] = ()
    duplicates: Sequence[Told] = ()
    mislabelled: Sequence[Told] = ()
    reasons: Mapping[int, str] | None = None


def page_data(
    loops: PageLoops, lists: Lists, page_dir: Path, policy: AudioPolicy, beside: str
) -> Plain:
    """Everything as JSON.

    Args:
        loops: with what is known of them.
        lists: further lists of loops.
        page_dir: folder of the page; links are relative to it.
        policy: whether loops without a copy are linked.
        beside: folder of the files beside the page, relative to it.
    """
    ranking, rows = loops.ranking, loops.shown_rows()
    index = {row: i for i, row in enumerate(rows.tolist())}
    paths = ranking.paths.take(pa.array(rows)).to_pylist()
    folders, names = zip(*(_split(path) for path in paths), strict=True)
    groups = [ranking.group_of(row) for row in rows.tolist()]
    files = _files(loops, rows, paths, page_dir, policy in ("auto", "link"))
    duplicates = [told for told in lists.duplicates if told.row in index]
    mislabelled = [told for told in lists.mislabelled if told.row in index]
    return {
        "total": len(ranking.ids),
        "id": ranking.ids.take(pa.array(rows)).to_pylist(),
        "name": list(names),
        "folder": _coded(folders),
        "group": _coded(groups),
        "rank": ranking.ranks[rows].tolist(),
        "score": [_short(score, 4) for score in ranking.scores[rows].tolist()],
        "percentile": [_short(x, 5) for x in ranking.percentiles_of(rows)],
        "p": _column(ranking.p_values, rows),
        "label": _column(ranking.labels, rows, str),
        "anomaly": ranking.is_anomaly[rows].astype(int).tolist(),
        "flags": _flags(ranking.flags, rows),
        "threshold": ranking.threshold,
        "files": files,
        "near": {index[row]: [index[j] for j in near] for row, near in loops.near.items()},
        "place": {index[row]: list(place) for row, place in loops.places.items()},
        "sound": {
            index[row]: _sound(loops, row, sound, beside) for row, sound in loops.sounds.items()
        },
        "why": {index[row]: text for row, text in (lists.reasons or {}).items() if row in index},
        "typical": [index[row] for row in lists.typical],
        "duplicates": [{"i": index[t.row], "text": t.text, "mark": t.mark} for t in duplicates],
        "mislabelled": [{"i": index[t.row], "text": t.text} for t in mislabelled],
        "hz": [LOWEST_HZ, HIGHEST_HZ],
    }


def sound_json(sound: Sound) -> dict[str, Plain]:
    """What a page shows of a sound, its picture inside."""
    found: dict[str, Plain] = {
        "seconds": round(sound.seconds, 6),
        "whole_s": round(sound.whole_s, 3),
        "cut": sound.is_cut,
        "wave": sound.wave,
    }
    if sound.picture:
        found["picture"] = "data:image/png;base64," + base64.b64encode(sound.picture).decode()
    return found


def _sound(loops: PageLoops, row: int, sound: Sound, beside: str) -> dict[str, Plain]:
    found = sound_json(sound)
    if not sound.picture:
        found["picture"] = f"{beside}/{loops.file_name(row)}.png"
    if row in loops.copied and sound.clip is not None:
        found["href"] = f"{beside}/{loops.file_name(row)}{EXTENSIONS[sound.clip.mime_type]}"
    elif sound.clip is not None:
        found["inside"] = True
    return found


def _files(
    loops: PageLoops, rows: np.ndarray, paths: Sequence[str], page_dir: Path, linked: bool
) -> dict[str, Plain]:
    """Where the audio lies: mostly a folder and the path as it is shown, or else in full."""
    starts: dict[str, int] = {}
    of_row: list[int] = []
    others: dict[int, list[str]] = {}
    here = os.fsencode(page_dir.resolve())
    for i, (row, path) in enumerate(zip(rows.tolist(), paths, strict=True)):
        file = loops.file(row)
        of_row.append(-1)
        if file is None:
            continue
        text = file.decode("utf-8", "replace")
        if os.fsencode(text) == file and text.endswith("/" + path.lstrip("/")):
            of_row[i] = starts.setdefault(text[: len(text) - len(path)], len(starts))
        else:
            others[i] = [text, urllib.parse.quote(os.path.relpath(file, here)) if linked else ""]
    links = [
        "" if start == "" else urllib.parse.quote(os.path.relpath(start, os.fsdecode(here))) + "/"
        for start in starts
    ]
    return {
        "start": list(starts),
        "link": links if linked else [],
        "of": of_row,
        "others": others,
    }


def _split(path: str) -> tuple[str, str]:
    """Folder with its slash, and name."""
    at = path.rstrip("/").rfind("/") + 1
    return path[:at], path[at:]


def _coded(texts: Iterable[str]) -> dict[str, Plain]:
    """Texts of which many are equal."""
    places: dict[str, int] = {}
    of_row = [places.setdefault(text, len(places)) for text in texts]
    return {"names": list(places), "of": of_row}


def _column(column: pa.Array | None, rows: np.ndarray, kind: type = float) -> list[Any] | None:
    if column is None:
        return None
    values = column.take(pa.array(rows)).to_pylist()
    if kind is float:
        return [_short(value, 3) for value in values]
    return [None if value is None else int(value) for value in values]


def _flags(column: pa.Array | None, rows: np.ndarray) -> dict[str, Plain]:
    if column is None:
        return {}
    flags = column.take(pa.array(rows)).to_pylist()
    return {str(i): list(words) for i, words in enumerate(flags) if words}


def _short(value: float | None, digits: int) -> float | None:
    return None if value is None or value != value else float(f"{value:.{digits}g}")
