"""Reading embeddings back, whoever wrote them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopjax.errors import UserError, WriteError
from loopjax.store.parquet import write_parquet
from loopjax.store.read import part_files, read_embeddings
from loopjax.store.schema import FAILURE_SCHEMA, ROW_FIELDS, StoreRow
from loopjax.store.write import ShardWriter

METADATA = {
    "schema_version": "1",
    "encoder": "test",
    "weights_sha256": "a" * 64,
    "preprocessing_sha256": "b" * 64,
    "preprocessing": "{}",
    "embedding_dim": "8",
}


def make_row(i: int) -> StoreRow:
    return StoreRow(
        id=f"{i:016x}-{i:08x}",
        key=f"{i:016x}",
        path=f"folder/{i:03d}.wav",
        path_bytes=f"/folder/{i:03d}.wav".encode(),
        group="folder",
        sha256=f"{i:064x}",
        size_bytes=1000 + i,
        mtime_ns=10**18 + i,
        sample_rate_hz=48_000,
        channels=2,
        n_frames=480 * i,
        duration_s=0.01 * i,
        subtype="PCM_16",
        flags=["silence", "dc"] if i % 2 else [],
        crop_std=None,
        embedding=np.random.default_rng(i).standard_normal(8).astype(np.float32),
    )


@pytest.fixture
def store(tmp_path):
    """Ten rows in three shards, written out of order."""
    writer = ShardWriter(tmp_path, METADATA, 4)
    for i in (7, 2, 9, 0, 5, 1, 8, 3, 6, 4):
        writer.add(make_row(i))
    writer.flush()
    return tmp_path


def test_rows_come_back_sorted_whatever_the_shards(store):
    embeddings = read_embeddings(store)
    assert len(part_files(store)) == 3
    assert len(embeddings) == 10
    assert embeddings.matrix.dtype == np.float32
    assert embeddings.table["path"].to_pylist() == [f"folder/{i:03d}.wav" for i in range(10)]
    for i in range(10):
        np.testing.assert_array_equal(embeddings.matrix[i], make_row(i).embedding)
    expected = {name: getattr(make_row(3), name) for name, _ in ROW_FIELDS}
    assert embeddings.table.slice(3, 1).to_pylist() == [expected]
    assert embeddings.metadata == METADATA
    assert embeddings.failures.schema == FAILURE_SCHEMA


def test_a_run_folder_and_a_single_part_can_be_read(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    store.rename(run / "embeddings")
    assert len(read_embeddings(run)) == 10
    assert len(read_embeddings(part_files(run / "embeddings")[0])) == 4


def test_parquet_is_an_ordinary_fixed_size_list(store):
    file = pq.ParquetFile(part_files(store)[0])
    column = file.schema_arrow.field("embedding").type
    assert column == pa.list_(pa.float32(), 8)
    chunk = file.metadata.row_group(0).column(file.metadata.num_columns - 1)
    assert "BYTE_STREAM_SPLIT" in chunk.encodings
    assert chunk.compression == "ZSTD"
    assert [f.name for f in file.schema_arrow][:-1] == [name for name, _ in ROW_FIELDS]


def test_nothing_to_read_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no such store"):
        read_embeddings(tmp_path / "nowhere")
    with pytest.raises(UserError, match="loopjax embed"):
        read_embeddings(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"\.npz"):
        read_embeddings(tmp_path / "a.txt")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        read_embeddings(tmp_path / "a.parquet")


def test_parquet_of_other_origin(tmp_path):
    matrix = np.arange(12.0).reshape(3, 4)
    table = pa.table({"embedding": matrix.tolist(), "note": ["c", "a", "b"]})
    pq.write_table(table, tmp_path / "other.parquet")
    embeddings = read_embeddings(tmp_path / "other.parquet")
    np.testing.assert_array_equal(embeddings.matrix, matrix)
    assert embeddings.table["note"].to_pylist() == ["c", "a", "b"]
    assert len(set(embeddings.table["id"].to_pylist())) == 3
    pq.write_table(table.drop_columns(["embedding"]), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no column 'embedding'"):
        read_embeddings(tmp_path / "none.parquet")
    pq.write_table(pa.table({"embedding": ["text"]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match="expected lists of numbers"):
        read_embeddings(tmp_path / "text.parquet")
    pq.write_table(pa.table({"embedding": [[1.0], None]}), tmp_path / "null.parquet")
    with pytest.raises(UserError, match="row 1 has no value in column 'embedding'"):
        read_embeddings(tmp_path / "null.parquet")


def test_a_failed_shard_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    path, table = tmp_path / "a.parquet", pa.table({"a": [1]})
    write_parquet(table, path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loopjax.store.parquet.pq.ParquetWriter.write_table", full)
    with pytest.raises(WriteError, match=r"cannot write .*a.parquet: No space left"):
        write_parquet(table, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_loop_that_is_there_twice_is_refused_by_shard(store):
    first = part_files(store)[0]
    (store / "part-copy.parquet").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=r"more than once \(in part-00000.parquet, part-copy"):
        read_embeddings(store)
