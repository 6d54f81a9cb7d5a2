"""Tables of other origin: every usual form is read, and what is not is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from loopjax.errors import UserError
from loopjax.store.read import read_embeddings

MATRIX = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
PATHS = [f"{i}.wav" for i in (3, 1, 0, 5, 2, 4)]
LISTS = MATRIX.tolist()
ORDER = np.argsort(PATHS)


def read(tmp_path, columns: dict):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    return read_embeddings(tmp_path / "a.parquet")


EMBEDDINGS = {
    "list": pa.array(LISTS),
    "float32": pa.array(LISTS, pa.list_(pa.float32())),
    "large list": pa.array(LISTS, pa.large_list(pa.float64())),
    "fixed size": pa.array(LISTS, pa.list_(pa.float64(), 4)),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(MATRIX),
}


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_forms_of_the_embedding_column(tmp_path, form):
    embeddings = read(tmp_path, {"path": PATHS, "embedding": EMBEDDINGS[form]})
    np.testing.assert_array_equal(embeddings.matrix, MATRIX[ORDER])
    assert embeddings.table["path"].to_pylist() == sorted(PATHS)
    assert embeddings.metadata["encoder"] == "external"


def test_half_precision_and_whole_numbers(tmp_path):
    half = MATRIX.astype(np.float16)
    embeddings = read(tmp_path, {"embedding": pa.array(list(half))})
    np.testing.assert_array_equal(embeddings.matrix, half.astype(np.float32))
    embeddings = read(tmp_path, {"embedding": [[1, 2], [3, 4]]})
    np.testing.assert_array_equal(embeddings.matrix, [[1, 2], [3, 4]])


@pytest.mark.parametrize("names", ["e0 e1 e2 e3", "dim_001 dim_002 dim_003 dim_004", "0 1 2 3"])
def test_wide_tables_are_read_by_number(tmp_path, names):
    columns = dict(zip(names.split(), MATRIX.T, strict=True))
    backwards = {"path": PATHS, **dict(reversed(columns.items())), "year": [1999] * 6}
    embeddings = read(tmp_path, backwards)
    np.testing.assert_array_equal(embeddings.matrix, MATRIX[ORDER])
    assert embeddings.table.schema.names == ["id", "path", "year"]


@pytest.mark.parametrize("names", ["e0 e1 e3 e4", "tempo energy key mode", "a0 a1 b0 b1"])
def test_columns_that_are_no_counted_series_are_refused_by_name(tmp_path, names):
    columns = dict(zip(names.split(), MATRIX.T, strict=True))
    with pytest.raises(UserError, match=f"no column 'embedding'.*{names.split()[2]}"):
        read(tmp_path, columns)


def test_row_columns_of_any_type_become_text(tmp_path):
    embeddings = read(
        tmp_path,
        {
            "filename": pa.array(PATHS).dictionary_encode(),
            "id": pa.array([9, 8, 7, 6, 5, 4]),
            "family": pa.array(["x", None, "x", "y", "y", "x"]).dictionary_encode(),
            "label": [0, 1, 0, 0, 0, 0],
            "embedding": LISTS,
        },
    )
    assert embeddings.table.schema.names == ["id", "path", "group", "label"]
    assert embeddings.table.slice(1, 1).to_pylist() == [
        {"id": "8", "path": "1.wav", "group": "", "label": 1}
    ]


def test_a_column_of_nulls_is_no_path(tmp_path):
    embeddings = read(tmp_path, {"path": pa.nulls(6), "embedding": LISTS})
    assert embeddings.table["path"].to_pylist() == [""] * 6
    np.testing.assert_array_equal(embeddings.matrix, MATRIX)


def test_the_index_of_a_frame_names_its_rows(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": PATHS, "embedding": LISTS}, index=list("abcdef"))
    frame.to_parquet(tmp_path / "a.parquet")
    embeddings = read_embeddings(tmp_path / "a.parquet")
    assert embeddings.table["id"].to_pylist() == [list("abcdef")[i] for i in ORDER]


MISTAKES = {
    "'embedding' is list<.*list<": {"embedding": [[[1.0]], [[2.0]]]},
    "'embedding' is list<.*bool": {"embedding": [[True], [False]]},
    "row 1 has no value in column 'embedding'": {"embedding": [[1.0], None]},
    "row 1 has a null in column 'embedding'": {"embedding": [[1.0], [None]]},
    "row 1 has 2 values, the others 1": {"embedding": [[1.0], [1.0, 2.0]]},
    "row 1 holds NaN or infinity": {"embedding": [[1.0], [1e300]]},
    "row 0 has no value in column 'e1'": {"e0": [1.0, 2.0], "e1": [None, 1.0]},
    "'id' holds 'a' more than once": {"id": ["a", "a"], "embedding": [[1.0], [2.0]]},
    "row 1 has no value in column 'id'": {"id": ["a", None], "embedding": [[1.0], [2.0]]},
    "'path' is list<": {"path": [["a"], ["b"]], "embedding": [[1.0], [2.0]]},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_cannot_be_used_is_named(tmp_path, message):
    with pytest.raises(UserError, match=rf"a\.parquet.*{message}"):
        read(tmp_path, MISTAKES[message])


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array(LISTS), pa.array(LISTS)], names=["embedding", "embedding"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="several columns are called 'embedding'"):
        read_embeddings(tmp_path / "a.parquet")


def test_shards_of_other_tools_are_one_table(tmp_path):
    for i in range(2):
        rows = {"path": PATHS[3 * i : 3 * i + 3], "embedding": LISTS[3 * i : 3 * i + 3]}
        pq.write_table(pa.table(rows), tmp_path / f"part-0000{i}-c000.snappy.parquet")
    np.testing.assert_array_equal(read_embeddings(tmp_path).matrix, MATRIX[ORDER])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_csv_as_programs_write_it(tmp_path, separator, encoding):
    paths = [f"Übung/{path}" for path in PATHS]
    decimal = "," if separator == ";" else "."  # as where numbers have a comma
    lines = [
        separator.join([path, *(repr(value).replace(".", decimal) for value in row)])
        for path, row in zip(paths, LISTS, strict=True)
    ]
    text = "\r\n".join([separator.join(["path", "e0", "e1", "e2", "e3"]), *lines])
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    found = read_embeddings(tmp_path / "a.csv")
    np.testing.assert_array_equal(found.matrix, MATRIX[ORDER])
    assert found.table["path"].to_pylist() == sorted(paths)


def test_csv_of_lists_and_of_columns(tmp_path):
    lines = [f'{path},"{row}"' for path, row in zip(PATHS, LISTS, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["path,embedding", *lines]))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.csv").matrix, MATRIX[ORDER])
    lines = ["\t".join([path, *map(repr, row)]) for path, row in zip(PATHS, LISTS, strict=True)]
    (tmp_path / "a.tsv").write_text("\n".join(["path\te0\te1\te2\te3", *lines]))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.tsv").matrix, MATRIX[ORDER])
    (tmp_path / "b.csv").write_text('embedding\n"[1, 2]"\n"[0.1 0.2 ... 0.3]"\n')  # cut by NumPy
    with pytest.raises(UserError, match="row 1: column 'embedding' is no list"):
        read_embeddings(tmp_path / "b.csv")


def test_safetensors(tmp_path):
    save_file({"embeddings": MATRIX, "mean": MATRIX[0]}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.safetensors").matrix, MATRIX)
    save_file({"a": MATRIX, "b": MATRIX}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="needs an array 'embeddings'"):
        read_embeddings(tmp_path / "two.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot read embeddings from .*cut\.safetensors"):
        read_embeddings(tmp_path / "cut.safetensors")


def write_lists(rows: np.ndarray, path):
    pq.write_table(pa.table({"embedding": pa.array(list(rows))}), path)


def write_columns(rows: np.ndarray, path):
    pq.write_table(pa.table({f"e{i}": column for i, column in enumerate(rows.T)}), path)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(lambda rows, path: np.save(path, rows), "npy"), (write_lists, "parquet"),
     (write_columns, "parquet")],
)  # fmt: skip
def test_double_precision_that_float32_would_lose_is_refused(tmp_path, write, suffix):
    rows = np.random.default_rng(0).normal(size=(40, 6))
    path = tmp_path / f"a.{suffix}"
    for lost, span in ((rows + 1e8, "5.46"), (rows * 1e-200, "5.46e-200")):
        write(lost, path)
        with pytest.raises(UserError, match=f"the widest column spans {span}, and float32"):
            read_embeddings(path)
    for kept in (rows + 1e3, rows * 1e-20, np.repeat(rows[:1], 40, axis=0)):
        write(kept, path)
        np.testing.assert_array_equal(read_embeddings(path).matrix, kept.astype(np.float32))
