"""What `similar`, `index`, `dedup` and `mislabelled` find, how long they take and how much memory.

    python scripts/bench/library.py copies loops/
    python scripts/bench/library.py planted loops/
    python scripts/bench/library.py recall
    python scripts/bench/library.py large --rows 1000000 --width 512

`copies` makes a folder of every loop and one altered form of it (MP3 of 128 kbit/s, -6 dB, 50 ms
later, 44.1 or 48 kHz; one semitone higher, which is no copy) and prints recall and precision of
`dedup`. `planted` puts 8 random loops into random wrong folders, a hundred times by a seed, and
prints the fraction of them that lies in the first tenth of the list of `mislabelled`; then the same
with one loop at a time, where nothing else is wrong. Loops that all lie in one folder are sorted by
the first word of their names. `recall` compares the search in buckets, and the one by an index,
with an exact one. `large` prints time and peak memory of each verb on a synthetic store.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measure import emit

FORMS = {
    "mp3": "MP3 of 128 kbit/s", "gain": "-6 dB", "offset": "50 ms later",
    "rate": "44.1 or 48 kHz", "trim": "the first 50 ms cut off",
    "ogg": "Vorbis, then MP3", "semitone": "a semitone higher: no copy",
}  # fmt: skip
OFFSET_S, SEMITONE = 0.05, 2 ** (1 / 12)
MP3_RATES_HZ = (32_000, 44_100, 48_000)
N_PLANTED, N_DRAWS = (8, 1), (100, 400)  # loops at once, and how often
CENTER_ROWS, COPIES = 500, 0.02  # rows per heap of alike loops, fraction that is copied


def loops_of(folder: Path) -> list[Path]:
    """The audio files of a folder."""
    suffixes = (".wav", ".flac", ".aiff", ".ogg")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)


def write_form(form: str, source: Path, out: Path) -> None:
    """Writes one altered form of a loop."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(source, always_2d=True, dtype="float32")
    if form == "ogg":
        soundfile.write(out.with_suffix(".ogg"), samples, rate, "VORBIS")
        samples, rate = soundfile.read(out.with_suffix(".ogg"), always_2d=True, dtype="float32")
        out.with_suffix(".ogg").unlink()
    if form in ("mp3", "ogg"):
        mp3_rate = rate if rate in MP3_RATES_HZ else 44_100
        samples = samples if rate == mp3_rate else soxr.resample(samples, rate, mp3_rate)
        soundfile.write(
            out.with_suffix(".mp3"), samples, mp3_rate, "MPEG_LAYER_III",
            bitrate_mode="CONSTANT", compression_level=2 / 3,
        )  # fmt: skip
        return
    if form == "gain":
        samples = samples / 2
    elif form == "offset":
        samples = np.pad(samples, ((int(OFFSET_S * rate), 0), (0, 0)))
    elif form == "trim":
        samples = samples[min(int(OFFSET_S * rate), len(samples) // 2) :]
    elif form == "rate":
        other = 44_100 if rate == 48_000 else 48_000
        samples, rate = soxr.resample(samples, rate, other), other
    else:
        samples = soxr.resample(samples, rate * SEMITONE, rate)
    soundfile.write(out.with_suffix(".wav"), np.clip(samples, -1, 1), rate)


def measure_copies(folder: Path, encoder: str) -> None:
    """Recall and precision per form; pairs that the loops themselves hold count for nobody."""
    from loopjax import dedup, embed_corpus

    loops = loops_of(folder)
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place) / "corpus"
        for name in ("original", *FORMS):
            (corpus / name).mkdir(parents=True)
        for i, loop in enumerate(loops):
            shutil.copy(loop, corpus / "original" / f"{i:05d}{loop.suffix}")
            for form in FORMS:
                write_form(form, loop, corpus / form / f"{i:05d}")

        def pairs(*names: str, max_heard: int) -> set[tuple[str, str]]:
            store = Path(place) / "-".join(names)
            if not store.exists():
                sources = [corpus / name for name in names]
                embed_corpus(sources, encoder, store, progress=False)
            found: dict[int, list[str]] = {}
            for row in dedup(store, max_heard=max_heard).table.to_pylist():
                found.setdefault(row["set"], []).append(Path(row["path"]).stem)
            return {(a, b) for m in found.values() for i, a in enumerate(m) for b in m[i + 1 :]}

        for max_heard in (20_000, 0):
            own = pairs("original", max_heard=max_heard)
            for form, says in FORMS.items():
                found = pairs("original", form, max_heard=max_heard) - own
                found -= {(b, a) for a, b in own}
                right = sum(a == b for a, b in found)
                how = "sound" if max_heard else "embedding"
                emit(
                    "library",
                    f"dedup by {how}, {says}: found",
                    ours=100 * right / len(loops),
                    unit="%",
                    n_loops=len(loops),
                    alike_already=len(own),
                    wrong_pairs=len(found) - right,
                )
                if form != "semitone" and found:
                    row = f"dedup by {how}, {says}: right among the found"
                    emit("library", row, ours=100 * right / len(found), unit="%")


def measure_planted(folder: Path, encoder: str) -> None:
    """The fraction of planted loops in the first tenth of the list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from loopjax import mislabelled, read_embeddings

    with tempfile.TemporaryDirectory() as place:
        from loopjax import embed_corpus

        embed_corpus([folder], encoder, Path(place) / "emb", progress=False)
        embeddings = read_embeddings(Path(place) / "emb")
        table = embeddings.table.drop_columns(["group"])
        paths = [Path(path) for path in embeddings.table["path"].to_pylist()]
        labels = np.array(embeddings.table["group"].to_pylist())
        if len(set(labels)) == 1:
            labels = np.array([path.stem.split("_")[0] for path in paths])
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(embeddings.matrix.ravel()), embeddings.matrix.shape[1]
        )
        ids = table["id"].to_pylist()

        def found(seed: int, n_planted: int) -> float:
            rng = np.random.default_rng(seed)
            planted = rng.choice(len(labels), n_planted, replace=False)
            wrong = labels.astype(object)
            for i in planted:
                wrong[i] = rng.choice([name for name in set_of(labels) if name != labels[i]])
            columns = {"group": pa.array(wrong.tolist()), "embedding": vectors}
            file = Path(place) / "planted.parquet"
            rows = {name: table[name] for name in table.column_names} | columns
            pq.write_table(pa.table(rows), file)
            listed = mislabelled(file).table["id"].to_pylist()[: len(labels) // 10]
            return float(np.mean([ids[i] in listed for i in planted]))

        for n_planted, n_draws in zip(N_PLANTED, N_DRAWS, strict=True):
            hits = [found(seed, n_planted) for seed in range(n_draws)]
            emit_planted(n_planted, np.array(hits), len(labels), len(set_of(labels)))


def emit_planted(n_planted: int, hits: np.ndarray, n_loops: int, n_folders: int) -> None:
    """Prints how many planted loops come first, from the fraction of each draw."""
    emit(
        "library",
        f"mislabelled, {n_planted} planted at a time: in the first tenth of the list",
        ours=100 * float(hits.mean()),
        unit="%",
        target=">= 80 %",
        standard_error=round(100 * float(hits.std() / np.sqrt(len(hits))), 1),
        draws=len(hits),
        n_loops=n_loops,
        n_folders=n_folders,
    )


def set_of(labels: np.ndarray) -> list[str]:
    """The different labels, sorted."""
    return sorted({str(label) for label in labels})


def synthetic_blocks(n_rows: int, width: int, block: int = 10_000) -> Iterator[np.ndarray]:
    """Heaps of alike rows on top of one another; the last rows are near-copies of the first."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(max(2, n_rows // CENTER_ROWS), width)).astype(np.float32)
    first: list[np.ndarray] = []
    n_copies = int(n_rows * COPIES)
    for start in range(0, n_rows - n_copies, block):
        n = min(block, n_rows - n_copies - start)
        rows = centers[rng.integers(len(centers), size=n)]
        rows = rows + 0.7 * rng.normal(size=(n, width)).astype(np.float32)
        if sum(map(len, first)) < n_copies:
            first.append(rows)
        yield rows
    copied = np.concatenate(first)[:n_copies]
    for start in range(0, n_copies, block):
        rows = copied[start : start + block]
        yield rows + 0.02 * rng.normal(size=rows.shape).astype(np.float32)


def write_store(folder: Path, n_rows: int, width: int) -> None:
    """A store of synthetic rows."""
    import pyarrow as pa

    from loopjax.store.parquet import write_parquet
    from loopjax.store.schema import EMBEDDING, shard_schema

    metadata = {"schema_version": "1", "encoder": "synthetic", "embedding_dim": str(width)}
    schema = shard_schema(width, metadata)
    start = 0
    for number, rows in enumerate(synthetic_blocks(n_rows, width)):
        n = len(rows)
        names = [f"{(start + i) * 0x9E3779B97F4A7C15 % 2**64:016x}" for i in range(n)]
        paths = [f"loops/{(start + i):07d}.wav" for i in range(n)]
        columns = {
            "id": [f"{name}-{start + i:08x}" for i, name in enumerate(names)],
            "key": names, "path": paths, "path_bytes": [path.encode() for path in paths],
            "group": [f"folder {(start + i) % 200:03d}" for i in range(n)],
            "sha256": [name * 4 for name in names], "size_bytes": [400_000] * n,
            "mtime_ns": [0] * n, "sample_rate_hz": [44_100] * n, "channels": [2] * n,
            "n_frames": [88_200] * n, "duration_s": [2.0] * n, "subtype": ["PCM_16"] * n,
            "flags": [[] for _ in range(n)], "crop_std": [None] * n,
            EMBEDDING: pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width),
        }  # fmt: skip
        write_parquet(pa.table(columns, schema=schema), folder / f"part-{number:05d}.parquet")
        start += n


def measure_verb(verb: str, store: Path) -> None:
    """One verb in this process: seconds and peak memory, its own and that of mapped files."""
    import loopjax

    def search() -> dict[str, object]:
        ids = [f"loops/{i:07d}.wav" for i in range(0, 100)]
        return {"n_queries": 100, "n_found": len(loopjax.similar(store, ids, k=10).table)}

    def copies() -> dict[str, object]:
        found = loopjax.dedup(store, max_heard=0)
        return {"n_sets": found.n_sets, "cosine": round(found.cosine, 4)}

    def wrong() -> dict[str, object]:
        return {"n_listed": len(loopjax.mislabelled(store).table)}

    def index() -> dict[str, object]:
        return {"recall": round(loopjax.build_index(store).recall, 4)}

    verbs: dict[str, Callable[[], dict[str, object]]] = {
        "similar": search, "index": index, "similar-by-index": search,
        "dedup": copies, "mislabelled": wrong,
    }  # fmt: skip
    peak, stop = [0, 0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            lines = Path("/proc/self/status").read_text().splitlines()
            values = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
            peak[0] = max(peak[0], int(values["RssAnon"]))
            peak[1] = max(peak[1], int(values["VmRSS"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started_s = time.monotonic()
    result = verbs[verb]()
    seconds = time.monotonic() - started_s
    stop.set()
    watcher.join()
    mib = {"anonymous_mib": peak[0] // 1024, "resident_mib": peak[1] // 1024}
    print(json.dumps({"seconds": round(seconds, 1), **mib, **result}))


def measure_large(n_rows: int, width: int, verbs: list[str]) -> None:
    """Every verb in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        write_store(Path(place), n_rows, width)
        for verb in verbs:
            command = [sys.executable, __file__, "verb", place, "--verb", verb]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            emit_large(verb, n_rows, width, json.loads(lines.splitlines()[-1]))


def emit_large(verb: str, n_rows: int, width: int, found: dict[str, float]) -> None:
    """Prints what one verb took."""
    row = f"{n_rows:,} x {width}: {verb}"
    memory = {"resident_mib": found["resident_mib"]}
    rest = {k: v for k, v in found.items() if k not in ("seconds", *memory, "anonymous_mib")}
    emit("library", row, ours=found["seconds"], unit="s", **rest)
    emit("library", f"{row}, memory", ours=found["anonymous_mib"], unit="MiB", **memory)


def measure_recall(n_rows: int, width: int) -> None:
    """What the search in buckets, and the one by an index, miss of the exact neighbors."""
    import loopjax
    from loopjax.library.neighbors import nearest_neighbors
    from loopjax.store.blocks import open_rows

    with tempfile.TemporaryDirectory() as place:
        write_store(Path(place), n_rows, width)
        rows, everything = open_rows(place), np.ones(n_rows, bool)
        started_s = time.monotonic()
        exact = nearest_neighbors(rows.matrices(everything), 8, exact_rows=n_rows)
        exact_s = time.monotonic() - started_s
        started_s = time.monotonic()
        quick = nearest_neighbors(rows.matrices(everything), 8, exact_rows=0)
        quick_s = time.monotonic() - started_s
        started_s = time.monotonic()
        index = loopjax.build_index(place)
        index_s = time.monotonic() - started_s
    shared = (quick.rows[:, :, None] == exact.rows[:, None, :]).any(axis=1)
    copies = np.arange(n_rows)[-int(n_rows * COPIES) :]
    row = f"{n_rows:,} x {width}"
    copied = shared[copies, 0]
    for what, share in (("copies", copied), ("nearest", shared[:, 0]), ("nearest 8", shared)):
        emit("library", f"{row}: {what} found in buckets", ours=100 * share.mean(), unit="%")
    emit("library", f"{row}: nearest 10 by the index", ours=100 * index.recall, unit="%")
    for what, taken_s in (("exactly", exact_s), ("in buckets", quick_s), ("index", index_s)):
        emit("library", f"{row}: neighbors {what}", ours=taken_s, unit="s")


def main() -> None:
    """Runs one measurement."""
    parser = argparse.ArgumentParser(description="Measures the verbs that search and clean.")
    parser.add_argument("what", choices=("copies", "planted", "recall", "large", "verb"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--encoder", default="loopjax-nano")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--verb", action="append")
    args = parser.parse_args()
    if args.what == "copies":
        measure_copies(args.folder, args.encoder)
    elif args.what == "planted":
        measure_planted(args.folder, args.encoder)
    elif args.what == "recall":
        measure_recall(args.rows or 50_000, args.width)
    elif args.what == "large":
        verbs = args.verb or ["similar", "index", "similar-by-index", "dedup", "mislabelled"]
        measure_large(args.rows or 1_000_000, args.width, verbs)
    else:
        measure_verb(args.verb[0], args.folder)


if __name__ == "__main__":
    main()
