"""Embeddings from other tools: .npy, .npz, and pickles that may hold nothing but arrays."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopjax.errors import UserError
from loopjax.store.read import read_embeddings

MATRIX = np.arange(12, dtype=np.float64).reshape(4, 3)
SHARED = Path(__file__).parents[3] / "shared" / "data" / "musicradar-bass-392"


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", MATRIX)
    embeddings = read_embeddings(tmp_path / "a.npy")
    assert embeddings.matrix.dtype == np.float32
    np.testing.assert_array_equal(embeddings.matrix, MATRIX)
    assert embeddings.table["id"].to_pylist() == [f"row-{i:06d}" for i in range(4)]
    assert embeddings.metadata["encoder"] == "external"


def test_npz_with_columns_keeps_its_order(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        embeddings=MATRIX,
        path=np.array(["d", "c", "b", "a"]),
        family=np.array(["x", "x", "y", "y"]),
        id=np.array([9, 8, 7, 6]),
    )
    embeddings = read_embeddings(tmp_path / "a.npz")
    assert embeddings.table.to_pydict() == {
        "id": ["9", "8", "7", "6"],
        "path": ["d", "c", "b", "a"],
        "group": ["x", "x", "y", "y"],
    }
    np.savez(tmp_path / "b.npz", vectors=MATRIX, note=np.arange(4))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "b.npz").matrix, MATRIX)


def test_repeated_ids_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=MATRIX, id=np.array([7, 8, 7, 9]))
    with pytest.raises(UserError, match="column 'id' holds '7' more than once"):
        read_embeddings(tmp_path / "a.npz")


@pytest.mark.skipif(not SHARED.exists(), reason="the published embeddings are not at hand")
def test_published_embeddings():
    embeddings = read_embeddings(SHARED / "nff.npz")
    assert embeddings.matrix.shape == (392, 1024)
    assert embeddings.table["path"][0].as_py().endswith(".wav")
    assert set(embeddings.table.schema.names) == {"id", "path", "group"}


@pytest.mark.parametrize(
    "content",
    [
        MATRIX,
        MATRIX.tolist(),
        {"embeddings": MATRIX, "path": ["a", "b", "c", "d"]},
        [{"path": str(i), "embedding": row} for i, row in enumerate(MATRIX)],
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_plain_arrays(tmp_path, content, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.pkl").matrix, MATRIX)


class Canary:
    """Runs a command when it is unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: [MATRIX, c], lambda c: {"embeddings": c}])
def test_pickles_that_run_code_are_refused(tmp_path, wrap):
    canary = tmp_path / "canary"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(wrap(Canary(canary))))
    with pytest.raises(UserError, match="nothing was run"):
        read_embeddings(tmp_path / "a.pkl")
    assert not canary.exists()


@pytest.mark.parametrize("module", ["builtins eval", "numpy load", "numpy.f2py.diagnose run"])
def test_names_near_the_allowed_ones_are_refused(tmp_path, module):
    name, attribute = module.split()
    (tmp_path / "a.pkl").write_bytes(f"c{name}\n{attribute}\n.".encode())
    with pytest.raises(UserError, match="nothing was run"):
        read_embeddings(tmp_path / "a.pkl")


@pytest.mark.faults
def test_a_dtype_forged_by_its_state_is_refused(tmp_path):
    """Seventy bytes that make NumPy follow a pointer of their own choosing."""
    (tmp_path / "a.pkl").write_bytes(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01K\x01t"
        b"cnumpy\ndtype\n(U\x02O8\x89\x88tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
        b"\x89C\x08AAAAAAAAtb."
    )
    with pytest.raises(UserError, match="do not fit its shape"):
        read_embeddings(tmp_path / "a.pkl")


def test_pickled_columns_of_any_kind_become_text(tmp_path):
    content = {
        "embeddings": MATRIX,
        "path": [b"a", "b\udcff", 3, "x" * 100],
        "id": ["k", 2, b"l", "m"],
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    table = read_embeddings(tmp_path / "a.pkl").table
    assert table["path"].to_pylist() == ["a", "b?", "3", "x" * 100]
    assert table["id"].to_pylist() == ["k", "2", "l", "m"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"junk",
        b"\x80\x04]",
        pickle.dumps({"a": 1}),
        pickle.dumps([{"path": "a"}]),
        pickle.dumps([[1.0], [1.0, 2.0]]),
        pickle.dumps({"embeddings": ["1", "2"]}),
        pickle.dumps({"embeddings": MATRIX, "path": 3}),
    ],
)
def test_broken_pickles(tmp_path, raw):
    (tmp_path / "a.pkl").write_bytes(raw)
    with pytest.raises(UserError, match=r"cannot read embeddings from .*a\.pkl"):
        read_embeddings(tmp_path / "a.pkl")


def test_zip_bombs_are_refused_before_they_expand(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", embeddings=np.zeros((1 << 15, 512), np.float64))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with pytest.raises(UserError, match="would expand"):
        read_embeddings(tmp_path / "bomb.npz")


def test_mistakes_name_file_and_row(tmp_path):
    np.save(tmp_path / "flat.npy", np.arange(3))
    with pytest.raises(UserError, match="expected a matrix"):
        read_embeddings(tmp_path / "flat.npy")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    with pytest.raises(UserError, match="expected a matrix"):
        read_embeddings(tmp_path / "text.npy")
    spoiled = MATRIX.copy()
    spoiled[2, 1] = np.inf
    np.save(tmp_path / "inf.npy", spoiled)
    with pytest.raises(UserError, match=r"inf.npy: row 2 holds NaN or infinity"):
        read_embeddings(tmp_path / "inf.npy")
    paths = [f"{len(spoiled) - row}.wav" for row in range(len(spoiled))]  # rows get sorted by path
    table = pa.table({"path": paths, "embedding": spoiled.tolist()})
    pq.write_table(table, tmp_path / "nan.parquet")
    with pytest.raises(UserError, match=r"nan.parquet: row 2 holds NaN or infinity"):
        read_embeddings(tmp_path / "nan.parquet")
    np.savez(tmp_path / "short.npz", embeddings=MATRIX, path=np.array(["a"]))
    with pytest.raises(UserError, match="'path' has shape"):
        read_embeddings(tmp_path / "short.npz")
    np.savez(tmp_path / "two.npz", a=MATRIX, b=MATRIX)
    with pytest.raises(UserError, match="needs an array 'embeddings'"):
        read_embeddings(tmp_path / "two.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read"):
        read_embeddings(tmp_path / "objects.npy")
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="cannot read"):
        read_embeddings(tmp_path / "zip.npz")


@pytest.mark.faults
def test_a_damaged_description_of_a_column_does_not_end_the_process():
    """Arrow's C++ ends the process where such a description is asked for."""
    file = Path(__file__).parent / "data" / "wrong_statistics.parquet"
    with pytest.raises(UserError, match=r"wrong_statistics\.parquet is damaged"):
        read_embeddings(file)
