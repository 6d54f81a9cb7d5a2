"""Fault matrix rows 38, 40 and 47: damaged shards, changed settings, rows that must not mix."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus
from loopjax.errors import UserError
from loopjax.store.read import part_files, read_embeddings
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
    assert len(list(store.with_name("store.damaged").iterdir())) == 1


def test_row_38_a_flipped_byte_anywhere_in_a_shard_is_noticed(store):
    whole, part = read_embeddings(store), part_files(store)[0]
    raw, unnoticed = part.read_bytes(), 0
    for offset in range(0, len(raw), 7):
        part.write_bytes(raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :])
        try:
            again = read_embeddings(store)
        except UserError as error:
            assert part.name in str(error)
        else:  # the name of the checksum's own key, or the size beside it: then there is no seal
            unnoticed += 1
            np.testing.assert_array_equal(again.matrix, whole.matrix)
            assert again.table.equals(whole.table)
            assert again.metadata == whole.metadata
    # 12 letters, 2 bytes of framing and 15 digits, of which every seventh byte was flipped.
    assert unnoticed <= -(-(12 + 2 + 15) // 7)


def test_a_shard_that_another_tool_wrote_anew_is_no_damaged_one(encoder, healthy, clean, store):
    part = part_files(store)[0]
    pq.write_table(pq.read_table(part), part)
    assert len(read_embeddings(store)) == len(clean.rows)
    assert run_and_read(encoder, [healthy], store).rows == clean.rows
    assert not store.with_name("store.damaged").exists()


@pytest.mark.parametrize("column", ["flags.list.element", "subtype", "duration_s"])
def test_damage_that_a_start_does_not_see_is_redone_once_a_reader_has_met_it(
    encoder, healthy, clean, store, column
):
    part = part_files(store)[1]
    group = pq.ParquetFile(part).metadata.row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    (chunk,) = [c for c in chunks if c.path_in_schema == column]
    raw, before = bytearray(part.read_bytes()), part.stat()
    raw[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    part.write_bytes(raw)
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk leaves it
    with pytest.raises(UserError, match=rf"{part.name} is damaged.*`loopjax embed` again"):
        read_embeddings(store)
    outcome = run_and_read(encoder, [healthy], store, shard_rows=4)
    assert_healthy_rows_equal(outcome, clean)


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
