"""Stores of version 0.1: plain shards, `store.json`, and rejected inputs as an ordinary table."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from loopjax.errors import UserError
from loopjax.store.failures import table_of_failures
from loopjax.store.parquet import open_footer
from loopjax.store.read import part_files, read_embeddings
from loopjax.store.resume import prepare
from loopjax.store.schema import shard_schema, table_of_rows
from tests.store.test_read import METADATA, make_row
from tests.store.test_write import failure


@pytest.fixture
def old_store(tmp_path):
    folder = tmp_path / "emb"
    folder.mkdir()
    for number, rows in enumerate((range(3), range(3, 5))):
        table = table_of_rows([make_row(i) for i in rows], shard_schema(8, METADATA))
        pq.write_table(table, folder / f"part-{number:05d}.parquet", write_page_checksum=True)
    pq.write_table(table_of_failures([failure(7), failure(1)]), folder / "failures.parquet")
    (folder / "store.json").write_text(json.dumps({"identity": METADATA, "settings": {}}))
    (folder / ".embed.lock").write_text("process 1 on elsewhere, since yesterday")
    return folder


def test_it_is_read_as_it_is(old_store):
    embeddings = read_embeddings(old_store)
    assert len(embeddings) == 5
    assert embeddings.failures["path"].to_pylist() == ["1.wav", "7.wav"]


def test_continuing_gives_it_the_new_layout_once(old_store):
    before = read_embeddings(old_store)
    prepare(old_store, METADATA)
    assert sorted(p.name for p in old_store.iterdir()) == [
        "failures-in-footer.parquet",
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    after = read_embeddings(old_store)
    np.testing.assert_array_equal(after.matrix, before.matrix)
    assert after.table.equals(before.table)
    assert after.metadata == before.metadata
    assert after.failures["path"].to_pylist() == ["7.wav"]  # the other one is embedded by now
    assert all(open_footer(part).is_untouched for part in part_files(old_store))
    written = [part.stat().st_ino for part in part_files(old_store)]
    prepare(old_store, METADATA)
    assert [part.stat().st_ino for part in part_files(old_store)] == written


def test_other_settings_are_refused_before_anything_is_changed(old_store):
    names = sorted(p.name for p in old_store.iterdir())
    with pytest.raises(UserError, match="weights_sha256"):
        prepare(old_store, {**METADATA, "weights_sha256": "c" * 64})
    assert sorted(p.name for p in old_store.iterdir()) == names
