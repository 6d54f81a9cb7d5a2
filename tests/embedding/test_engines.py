"""Embedding as a function of batches, by itself and as an actor of Ray Data."""

import numpy as np
import pytest

from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed
from loopjax.embedding.engines import EmbedBatches
from loopjax.errors import UserError
from tests.audio_files import write_corpus, write_tone
from tests.fake_encoder import FakeEncoder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines") / "corpus"
    paths = write_corpus(folder, 10)
    return [*paths, write_tone(folder / "z.flac", 0.5, 44_100, seed=50)]


@pytest.mark.parametrize("column", ["bytes", "path"])
def test_rows_are_those_of_a_store(corpus, column):
    expected = embed(corpus, FakeEncoder(), EmbedConfig(batch_size=4, workers=1))
    wanted = dict(zip(expected.table["sha256"].to_pylist(), expected.matrix, strict=True))
    values = [p.read_bytes() if column == "bytes" else str(p) for p in corpus]
    values.insert(3, b"no audio" if column == "bytes" else "/gone.wav")
    column_of_bytes = np.array(values, object)
    with EmbedBatches(FakeEncoder(), EmbedConfig(batch_size=4)) as embed_batch:
        for _ in range(2):
            result = embed_batch({column: column_of_bytes, "label": list(range(12))})
            assert result["label"] == list(range(12))
            assert [bool(e) for e in result["error"]] == [i == 3 for i in range(12)]
            assert np.isnan(result["embedding"][3]).all()
            for i in (i for i in range(12) if i != 3):
                np.testing.assert_array_equal(result["embedding"][i], wanted[result["sha256"][i]])
        with pytest.raises(UserError, match="'bytes' or 'path'"):
            embed_batch({"audio": []})


@pytest.mark.slow
def test_ray_data(corpus):
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")
    encoder = "log-mel-statistics"
    expected = embed(corpus, encoder, EmbedConfig(workers=1))
    wanted = dict(zip(expected.table["sha256"].to_pylist(), expected.matrix, strict=True))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        rows = data.from_items([{"path": str(path)} for path in corpus])
        done = rows.map_batches(
            EmbedBatches,
            fn_constructor_kwargs={"encoder": encoder},
            batch_size=4,
            compute=data.ActorPoolStrategy(size=1),
        ).take_all()
    finally:
        ray.shutdown()
    assert len(done) == len(corpus)
    for row in done:
        np.testing.assert_array_equal(np.asarray(row["embedding"]), wanted[row["sha256"]])
