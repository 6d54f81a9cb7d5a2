import numpy as np
import pytest

import loopjax
from loopjax.cli import main
from loopjax.errors import UserError
from loopjax.library.rerank import rerank
from tests.library.stores import write_store
from tests.library.test_apply import write_marks


@pytest.fixture
def corpus(tmp_path):
    """Loops of two kinds, a few of each marked; and which ones are of the bad kind."""
    rng = np.random.default_rng(0)
    is_bad = rng.random(200) < 0.3
    matrix = rng.normal(size=(200, 16)) + 5 + 2.5 * is_bad[:, None] * np.eye(16)[0]
    store = write_store(tmp_path / "emb", matrix)
    ids = loopjax.read_embeddings(store).table["id"].to_pylist()
    rows = [{"id": ids[i], "mark": "reject" if is_bad[i] else "keep"} for i in range(40)]
    write_marks(tmp_path / "marks.csv", rows)
    return store, tmp_path / "marks.csv", is_bad


def test_a_few_marks_rank_the_rest(corpus):
    store, marks, is_bad = corpus
    found = rerank(store, marks)
    paths = found.table["path"].to_pylist()
    rest = np.array([int(path[6:12]) for path in paths])
    assert sorted(rest) == list(range(40, 200))
    n_bad = int(is_bad[40:].sum())
    assert is_bad[rest[:n_bad]].mean() > 0.7
    assert (found.n_keep, found.n_reject) == (int((~is_bad[:40]).sum()), int(is_bad[:40].sum()))
    assert found.auroc is not None
    assert found.auroc > 0.8


def test_rejected_loops_leave_training(corpus, tmp_path, capsys):
    store, marks, is_bad = corpus
    command = ["fit", str(store), "--detector", "pca", "-o"]
    assert main([*command, str(tmp_path / "all")]) == 0
    assert main([*command, str(tmp_path / "kept"), "--marks", str(marks)]) == 0
    everything, kept = (
        loopjax.load_model(tmp_path / name).training_ids.to_pylist() for name in ("all", "kept")
    )
    ids = loopjax.read_embeddings(store).table["id"].to_pylist()
    rejected = {ids[i] for i in range(40) if is_bad[i]}
    assert set(everything) - set(kept) == rejected & set(everything) != set()


def test_too_few_marks_are_named(tmp_path, corpus, capsys):
    store, _, _ = corpus
    row_id = loopjax.read_embeddings(store).table["id"][0].as_py()
    write_marks(tmp_path / "few.csv", [{"id": row_id, "mark": "keep"}])
    with pytest.raises(UserError, match="1 kept and 0 rejected"):
        rerank(store, tmp_path / "few.csv")
    assert main(["rerank", str(store), str(tmp_path / "marks.csv"), "--top", "3"]) == 0
    assert "AUROC on marks held out" in capsys.readouterr().err
