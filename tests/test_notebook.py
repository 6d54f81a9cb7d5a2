"""What notebooks show, and the frames that notebooks work with."""

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import loopjax
from loopjax.evaluation.tables import Estimate, Evaluation, Table
from loopjax.store.read import Embeddings


@pytest.fixture
def embeddings(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    paths = [tmp_path / "a.wav", tmp_path / "<b>.wav"]
    table = pa.table(
        {
            "id": ["a", "b"],
            "path": [path.name for path in paths],
            "path_bytes": [bytes(path) for path in paths],
            "flags": [["silence"], []],
        }
    )
    return Embeddings(np.float32([[1, 2, 3], [4, 5, 6]]), table, {"encoder": "loopjax-nano"})


def test_rows_are_shown_with_players_and_without_the_markup_of_file_names(embeddings):
    page = embeddings._repr_html_()
    assert "2 x 3" in page and "loopjax-nano" in page and "silence" in page
    assert page.count("<audio controls") == 1, "the other file is not there"
    assert "&lt;b&gt;.wav" in page and "<b>.wav" not in page


def test_frames_hold_rows_and_embeddings(embeddings):
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    frame = embeddings.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    np.testing.assert_array_equal(np.stack(frame["embedding"]), embeddings.matrix)
    assert isinstance(embeddings.to_polars(), polars.DataFrame)
    np.testing.assert_array_equal(embeddings.to_polars()["embedding"].to_numpy(), embeddings.matrix)


def test_a_missing_package_is_named(embeddings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(loopjax.UserError, match="pip install polars"):
        embeddings.to_polars()


def test_models_encoders_and_evaluations_say_what_they_are():
    rows = np.random.default_rng(0).standard_normal((40, 8))
    model = loopjax.Model(loopjax.PCA().fit(rows), "my <model>")
    assert "my &lt;model&gt;" in model._repr_html_() and "pca" in model._repr_html_()
    assert "untrained-nano" in loopjax.load_encoder("untrained-nano")._repr_html_()
    row = {"detector": "pca", "AUROC": Estimate(0.91234, 0.8, 0.95), "n": None}
    page = Evaluation((Table("Detectors", "a & b", (row,)),))._repr_html_()
    assert "0.912 [0.8, 0.95]" in page and "a &amp; b" in page
