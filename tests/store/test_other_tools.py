"""A store is one table for other tools, also while it is written and with rejected inputs."""

import os

import pytest

from loopjax.io import locked
from loopjax.store.resume import finish
from loopjax.store.write import ShardWriter
from tests.store.test_read import METADATA, make_row
from tests.store.test_write import failure

N_ROWS = 5


@pytest.fixture(params=["finished", "being written", "left by a killed run"])
def store(request, tmp_path):
    """Two shards and two rejected inputs."""
    folder = tmp_path / "emb"
    folder.mkdir()
    writer = ShardWriter(folder, METADATA, 3)
    for i in range(N_ROWS):
        writer.add(make_row(i))
    for i in (7, 8):
        writer.add_failure(failure(i))
    writer.flush()
    if request.param == "finished":
        finish(folder, METADATA)
    if request.param == "being written":
        with locked(folder):
            yield folder
    else:
        yield folder


def with_pandas(store) -> tuple[int, object]:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(store).sort_values("id")
    return len(frame), frame["embedding"].iloc[0]


def with_polars(store) -> tuple[int, object]:
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(store).sort("id")
    return len(frame), frame["embedding"][0]


def with_arrow(store) -> tuple[int, object]:
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(store).to_table().sort_by("id")
    return len(table), table["embedding"][0].as_py()


def with_duckdb(store) -> tuple[int, object]:
    duckdb = pytest.importorskip("duckdb")
    query = f"select id, embedding from '{store}/*.parquet' order by id"
    rows = duckdb.sql(query).fetchall()
    return len(rows), rows[0][1]


def with_datasets(store) -> tuple[int, object]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset(str(store), cache_dir=str(store.parent / "cache"))
    rows = sorted(data["train"], key=lambda row: row["id"])
    return len(rows), rows[0]["embedding"]


READERS = [with_pandas, with_polars, with_arrow, with_duckdb, with_datasets]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_the_folder_opens_as_one_table(store, read):
    n_rows, first = read(store)
    assert n_rows == N_ROWS
    assert list(first) == pytest.approx(make_row(0).embedding.tolist())
