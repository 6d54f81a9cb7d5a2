"""Fault matrix rows 38, 40 and 47: damaged shards, changed settings, rows that must not mix."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopjax.config import EmbedConfig
from loopjax.embedding.corpus import embed_corpus
from loopjax.errors import UserError
from loopjax.store.read import part_files, read_embeddings
from loopjax.store.resume import QUARANTINE, SETTINGS_NAME
from loopjax.store.schema import shard_schema
from tests.fake_encoder import FakeEncoder
from tests.faults.conftest import assert_healthy_rows_equal, run_and_read

pytestmark = pytest.mark.faults


@pytest.fixture
def store(encoder, healthy, tmp_path):
    """A store of three shards."""
    folder = tmp_path / "store"
    run_and_read(encoder, [healthy], folder, shard_rows=4)
    assert len(part_files(folder)) == 3
    return folder


def _without_footer(raw: bytes) -> bytes:
    return raw[:-200]


def _flipped(raw: bytes) -> bytes:
    middle = len(raw) // 3  # inside the data pages
    return raw[:middle] + bytes([raw[middle] ^ 0x10]) + raw[middle + 1 :]


def _emptied(raw: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_without_footer, _flipped, _emptied])
def test_row_38_damaged_parts_are_set_aside_and_redone(
    encoder, healthy, clean, store, damage, caplog
):
    victim = part_files(store)[1]
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(UserError, match=victim.name):
        read_embeddings(store)
    outcome = run_and_read(encoder, [healthy], store, shard_rows=4)
    assert_healthy_rows_equal(outcome, clean)
    assert sorted(outcome.rows) == sorted(clean.rows)
    assert victim.name in caplog.text
    assert len(list((store / QUARANTINE).iterdir())) == 1


def test_row_38_no_flipped_byte_changes_an_embedding_unnoticed(store):
    whole = read_embeddings(store).matrix
    part = part_files(store)[0]
    raw = part.read_bytes()
    column = pq.ParquetFile(part).metadata.row_group(0)
    places = [column.column(i) for i in range(column.num_columns)]
    (chunk,) = [c for c in places if c.path_in_schema.startswith("embedding")]
    noticed = 0
    offsets = range(
        chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size, 37
    )
    for offset in offsets:
        part.write_bytes(raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :])
        try:
            again = read_embeddings(store).matrix
        except UserError:
            noticed += 1
        else:  # a byte of a page header that nobody reads
            np.testing.assert_array_equal(again, whole)
    assert noticed > len(offsets) // 2


def test_row_40_changed_settings_refuse_with_the_difference(encoder, healthy, store, clean):
    options = EmbedConfig(batch_size=4, workers=1, mono="left")
    with pytest.raises(UserError, match=r"mono: 'mean' there, 'left' now.*--restart"):
        embed_corpus([healthy], encoder, store, options, progress=False)
    with pytest.raises(UserError, match="weights_sha256"):
        embed_corpus([healthy], FakeEncoder(seed=1), store, EmbedConfig(), progress=False)
    assert len(read_embeddings(store)) == len(clean.rows)
    summary = embed_corpus([healthy], encoder, store, options, restart=True, progress=False)
    assert summary.n_embedded == len(clean.rows)
    assert json.loads(read_embeddings(store).metadata["preprocessing"])["mono"] == "left"


def test_row_40_settings_file_lost_or_broken(encoder, healthy, store):
    (store / SETTINGS_NAME).unlink()
    with pytest.raises(UserError, match="weights_sha256"):
        embed_corpus([healthy], FakeEncoder(seed=1), store, EmbedConfig(), progress=False)
    (store / SETTINGS_NAME).write_text("{")
    with pytest.raises(UserError, match=SETTINGS_NAME):
        embed_corpus([healthy], encoder, store, EmbedConfig(), progress=False)


def _rewrite(part, change):
    file = pq.ParquetFile(part)
    table = change(file.read())
    pq.write_table(table, part)


def test_row_47_nan_row_is_named(store):
    part = part_files(store)[1]

    def spoil(table: pa.Table) -> pa.Table:
        rows = table["embedding"].to_pylist()
        rows[2][5] = float("nan")
        at = table.schema.get_field_index("embedding")
        return table.set_column(
            at, table.schema.field(at), pa.array(rows, table.schema.field(at).type)
        )

    _rewrite(part, spoil)
    with pytest.raises(UserError, match=rf"{part.name}: row 2 holds NaN"):
        read_embeddings(store)


def test_row_47_wrong_width_is_named(store, encoder):
    part = part_files(store)[2]

    def widen(table: pa.Table) -> pa.Table:
        wide = shard_schema(17, {})
        rows = [[*row, 0.0] for row in table["embedding"].to_pylist()]
        at = table.schema.get_field_index("embedding")
        return table.set_column(
            at, wide.field("embedding"), pa.array(rows, wide.field("embedding").type)
        )

    _rewrite(part, widen)
    with pytest.raises(UserError, match=rf"{part.name}: row 0 has 17 values"):
        read_embeddings(store)


def test_row_47_rows_of_different_widths_in_one_file(tmp_path):
    ragged = pa.table({"embedding": pa.array([[1.0, 2.0], [1.0], [3.0, 4.0]])})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match=r"ragged.parquet: row 1 has 1 values"):
        read_embeddings(tmp_path / "ragged.parquet")


def test_row_47_mixed_encoders_are_refused(store, healthy, tmp_path):
    other = tmp_path / "other"
    embed_corpus([healthy], FakeEncoder(seed=1), other, EmbedConfig(workers=1), progress=False)
    shutil.copy(part_files(other)[0], store / "part-00009.parquet")
    with pytest.raises(UserError, match=r"part-00009.*different encoders or settings"):
        read_embeddings(store)


def test_the_encoder_must_not_return_nan(healthy, tmp_path):
    encoder = FakeEncoder()
    encoder.params = encoder.params.at[0, 0].set(np.nan)
    outcome_store = tmp_path / "store"
    summary = embed_corpus(
        [healthy], encoder, outcome_store, EmbedConfig(workers=1), progress=False
    )
    assert summary.n_embedded == 0
    assert summary.reasons == {"non_finite": 12}
