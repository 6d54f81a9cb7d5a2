"""Labels lie beside their loops, rows of foreign files keep their values, copies stay together."""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from sklearn.metrics import roc_auc_score

import loopjax
from loopjax.config import SplitConfig
from loopjax.detectors import make_detector
from loopjax.detectors.crossfit import fit_and_cross_fit
from loopjax.evaluation.folds import linked_groups, near_duplicates
from loopjax.evaluation.splits import protocol_splits
from loopjax.experiment.labels import join_labels, read_labels
from loopjax.experiment.splits import split_rows
from scripts.promises.line import Line, refused

RATE_HZ = 22_050
SEED = 0
REFUSED_FILES = ("nested", "null_emb", "null_inside")  # of the Parquet cases; all others are read
Rows = Sequence[tuple[str, str]]


class Corpus:
    """Forty tones and twenty bursts of noise under the same base names in two folders."""

    def __init__(self, folder: Path):
        rng = np.random.default_rng(SEED)
        self.root = str(folder)
        self.rows: Rows = [(f"corpus/bass/loop_{i:02d}.wav", "0") for i in range(40)]
        self.rows = [*self.rows, *((f"corpus/odd/loop_{i:02d}.wav", "1") for i in range(20))]
        for path, is_odd in self.rows:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            seconds = np.arange(RATE_HZ) / RATE_HZ
            tone = np.sin(2 * np.pi * rng.uniform(60, 120) * seconds)
            noise = rng.normal(size=RATE_HZ) * (seconds * rng.integers(3, 9) % 1 < 0.3)
            sf.write(folder / path, 0.2 * (noise if is_odd == "1" else tone), RATE_HZ)
        embeddings = embed(folder / "corpus")
        self.matrix = embeddings.matrix
        self.paths = [str(path) for path in embeddings.table["path"].to_pylist()]

    def auroc(self, file: Path, was: str = "corpus/bass", named: str = "corpus/bass") -> float:
        """AUROC of kNN by the labels of a file, in a corpus one of whose folders is renamed."""
        paths = [path.replace(was, named) for path in self.paths]
        root = str(Path(self.root) / named.split("/")[0])
        labels = join_labels(read_labels(file, ignore), paths, [root]).values
        detector = make_detector("knn")
        (own,) = fit_and_cross_fit([detector], self.matrix[labels == 0])
        others = detector.decision_function(self.matrix[labels == 1])
        truth = np.repeat([0, 1], [len(own.scores), len(others)])
        return float(roc_auc_score(truth, np.r_[own.scores, others]))


def label_lines(cases: Path, folder: Path) -> Iterator[Line]:
    """AUROC of loops that every detector tells apart: below 1, labels lie beside wrong loops.

    Args:
        cases: a folder of label files for such a corpus; one that is missing holds none.
        folder: an empty one, for loops and further label files.
    """
    corpus = Corpus(folder)
    renamed = {
        "labels2.csv": {"was": "corpus/", "named": "corpus2/"},
        "labels_latin1.csv": {"named": "corpus/Baß"},
    }
    for file in sorted(cases.glob("*.csv")):
        if file.name == "labels_two.csv":
            yield refused_labels(file, f"{file}:42: is_anomaly is '2'")
        else:
            found = corpus.auroc(file, **renamed.get(file.name, {}))
            yield Line(f"5 {file.name}: AUROC", ".77", found, 1, 1)

    def written(name: str, rows: Rows, encoding: str = "utf-8", separator: str = ",") -> Path:
        lines = [separator.join(row) for row in (("file", "is_anomaly"), *rows)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)
        return folder / name

    words = [(path, ("No", "yes")[int(value)]) for path, value in corpus.rows]
    bass, odd = corpus.rows[:40], corpus.rows[40:]
    unicode = [(path.replace("bass", "Bäss"), value) for path, value in corpus.rows]
    decomposed = [(unicodedata.normalize("NFD", path), value) for path, value in unicode]
    good = {
        "tabs, yes and no": corpus.auroc(written("a.csv", words, separator="\t")),
        "UTF-16 without a mark": corpus.auroc(written("b.csv", words, "utf-16-le")),
        "absolute paths": corpus.auroc(
            written("c.csv", [(f"{folder}/{path}", value) for path, value in corpus.rows])
        ),
        "paths from the folder on": corpus.auroc(
            written("d.csv", [(path.removeprefix("corpus/"), v) for path, v in corpus.rows])
        ),
        "decomposed Unicode": corpus.auroc(written("e.csv", decomposed), named="corpus/Bäss"),
        "bare names of one folder": corpus.auroc(
            written("f.csv", [(path.replace("odd/", "odd/odd_"), v) for path, v in bass]
                    + [(f"odd_{Path(path).name}", v) for path, v in odd]),
            was="corpus/odd/", named="corpus/odd/odd_",
        ),
    }  # fmt: skip
    for name, found in good.items():
        yield Line(f"5 labels, {name}: AUROC", ".77", found, 1, 1)
    bare = written("bare names.csv", [(Path(path).name, value) for path, value in corpus.rows])
    yield Line("5 labels, ambiguous bare names: refused with their line", "0",
               refused(lambda: corpus.auroc(bare), saying=f"{bare}:2: 'loop_00.wav' fits 2 loops"),
               1, 1)  # fmt: skip
    maybe = written("maybe.csv", [*bass, (odd[0][0], "maybe")])
    yield refused_labels(maybe, f"{maybe}:42: is_anomaly is 'maybe'")
    strange = [(path.replace("loop", "loot"), value) for path, value in odd[:7]]
    unmatched = read_labels(written("unmatched.csv", [*bass, *odd[7:], *strange]), ignore)
    yield Line("5 labels of seven missing loops: rows that match no loop", "0",
               len(join_labels(unmatched, corpus.paths).unmatched), 7, 7)  # fmt: skip


def refused_labels(file: Path, saying: str) -> Line:
    """A label file that must be refused with its line."""
    found = refused(lambda: read_labels(file, ignore), saying=saying)
    return Line(f"5 {file.name}: refused with file and line", "0", found, 1, 1)


def parquet_lines(cases: Path, folder: Path) -> Iterator[Line]:
    """Foreign Parquet files: every row with its own values, or a refusal that names the column.

    Args:
        cases: a folder of such files; one that is missing holds none.
        folder: for further files.
    """
    for file in sorted(cases.glob("*.parquet")):
        if file.stem in REFUSED_FILES:
            what = "refused with the column's name"
            found = refused(lambda f=file: loopjax.read_embeddings(f), saying="'embedding'")
        else:
            what, found = "every row with its own values", keeps_rows(file)
        before = "0" if file.stem in ("categorical", "null_path") else ""
        yield Line(f"6 {file.name}: {what}", before, found, 1, 1)
    texts = [f"b{i % 7}/{i:02d}.wav" for i in range(20)][::-1]
    vectors = pa.array(np.random.default_rng(SEED).normal(size=(20, 8)).tolist())
    plain = pa.table({"id": texts, "path": texts, "group": texts, "embedding": vectors})
    coded = pa.table({name: plain[name].dictionary_encode() for name in ("id", "path", "group")})
    for name, table in {
        "dictionary-encoded id, path and group": coded.append_column("embedding", vectors),
        "a column of nulls as group": plain.set_column(2, "group", pa.nulls(20)),
        "a column of nulls that nobody knows": plain.append_column("x", pa.nulls(20)),
    }.items():
        pq.write_table(table, folder / "a.parquet")
        yield Line(f"6 {name}: every row with its own values", "0",
                   keeps_rows(folder / "a.parquet"), 1, 1)  # fmt: skip
    twice = pa.array([*texts[:19], texts[3]])
    for name, ids in {"": twice, ", dictionary-encoded": twice.dictionary_encode()}.items():
        pq.write_table(plain.set_column(0, "id", ids), folder / "a.parquet")
        found = refused(
            lambda: loopjax.read_embeddings(folder / "a.parquet"),
            saying=f"column 'id' holds '{texts[3]}' more than once",
        )
        yield Line(f"6 repeated ids{name}: refused with the id", "0", found, 1, 1)


def keeps_rows(file: Path) -> int:
    """1 if every row read from a file has the path and the values that it has in the file."""
    table, read = pq.read_table(file), loopjax.read_embeddings(file)
    values = (
        table["embedding"].to_pylist()
        if "embedding" in table.column_names
        else np.column_stack([table[f"e{i}"] for i in range(8)]).tolist()
    )
    paths = next(table[n].to_pylist() for n in ("path", "filename") if n in table.schema.names)
    expected = sorted(zip([path or "" for path in paths], values, strict=True), key=lambda r: r[0])
    same_paths = read.table["path"].to_pylist() == [path for path, _ in expected]
    same_values = np.array_equal(read.matrix, np.array([v for _, v in expected], np.float32))
    return int(same_paths and same_values)


def split_lines(sonic_pi: Path, bass: Path, folder: Path) -> Iterator[Line]:
    """Loops with a copy on the other side of a split, in corpora with copies.

    Args:
        sonic_pi: a folder of loops; every fourth is copied, half of the copies a little quieter.
        bass: the folder of the paper's bass loops.
        folder: an empty one, for the copies.
    """
    corpora: dict[str, tuple[loopjax.Embeddings, list[str]]] = {}
    loops = sorted(sonic_pi.glob("*.flac"))
    for i, loop in enumerate(loops[::4]):
        samples, rate_hz = sf.read(loop)
        if i % 2:
            sf.write(folder / f"{loop.stem}.wav", 0.99 * samples, rate_hz)
        else:
            (folder / loop.name).write_bytes(loop.read_bytes())
    if loops:
        embeddings = embed(sonic_pi, folder)
        names = [Path(path).name for path in embeddings.table["path"].to_pylist()]
        kinds = [name.split("_")[0] for name in names]
        corpora["sonic-pi and copies"] = (embeddings, kinds)
    for file in sorted(bass.glob("*.npz")):
        embeddings = loopjax.read_embeddings(file)
        corpora[file.stem] = (embeddings, embeddings.table["group"].to_pylist())
    for name, (embeddings, kinds) in corpora.items():
        yield from leaks(name, embeddings, kinds)


def leaks(name: str, embeddings: loopjax.Embeddings, kinds: Sequence[str]) -> Iterator[Line]:
    """What crosses the folds, the sides and the protocol splits of a corpus."""
    split = split_rows(embeddings, SplitConfig(train_fraction=0.8))
    rows = embeddings.matrix.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    alike = rows @ rows.T >= split.cosine
    columns = embeddings.columns(["sha256"])
    content = [column.to_pylist() for column in columns.columns]
    for column in content:
        alike |= np.equal.outer(np.array(column), np.array(column))

    def crossing(side: np.ndarray, other: np.ndarray) -> int:
        return int(alike[np.ix_(side, other)].any(axis=1).sum())

    def over_folds(folds: np.ndarray) -> int:
        return sum(
            crossing(np.flatnonzero(folds == k), np.flatnonzero(folds != k)) for k in range(5)
        )

    rng = np.random.default_rng(SEED)
    singly = over_folds(rng.permutation(np.arange(len(rows)) % 5))
    moved = 1 if "copies" in name else 0
    yield Line(f"7 {name}: loops moved to the side of their copies", "0",
               split.n_moved, moved, len(rows))  # fmt: skip
    yield Line(f"7 {name}: loops with a copy in another fold", str(singly),
               over_folds(split.folds), 0, 0)  # fmt: skip
    fits = split.train
    yield Line(f"7 {name}: held-out loops with a copy that trains", "",
               crossing(np.flatnonzero(split.held_out), np.flatnonzero(fits)), 0, 0)  # fmt: skip
    groups = linked_groups(len(rows), near_duplicates(embeddings.matrix, split.cosine), content)
    for protocol in ("P1", "P3"):
        before, found = (
            sum(crossing(test, train) for _, train, test, _ in
                protocol_splits(kinds, protocol, SEED, alike=known))
            for known in (None, groups)
        )  # fmt: skip
        yield Line(f"7 {name}, {protocol}: tested loops with a copy that trains", str(before),
                   found, 0, 0)  # fmt: skip


def embed(*folders: Path) -> loopjax.Embeddings:
    """Embeddings by the bundled encoder."""
    encoder = loopjax.load_encoder("loopjax-nano")
    return loopjax.embed([str(folder) for folder in folders], encoder)


def ignore(_: str) -> None:
    """For notes that say nothing about a number."""
