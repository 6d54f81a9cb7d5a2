"""Which loops count as copies, for corpora that are no usual embeddings."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopjax.config import SplitConfig
from loopjax.experiment.splits import split_rows
from loopjax.store.read import read_embeddings
from loopjax.store.stream import open_embeddings
from tests.detectors.small import rows

N = 200


@pytest.fixture(params=["whole", "streamed"])
def opened(request, tmp_path):
    def write(matrix: np.ndarray):
        (tmp_path / "emb").mkdir()
        table = pa.table({"path": [f"{i:03}.wav" for i in range(N)], "embedding": list(matrix)})
        pq.write_table(table, tmp_path / "emb" / "part-0.parquet", row_group_size=50)
        read = read_embeddings if request.param == "whole" else open_embeddings
        return read(tmp_path / "emb")

    return write


def test_loops_far_from_zero_are_no_copies_of_one_another(opened):
    matrix = rows(N, width=24) + np.float32(1e3)
    matrix[150:155] = matrix[:5] + np.float32(2e-4)
    split = split_rows(opened(matrix), SplitConfig())
    assert split.n_alike == 10
    assert (split.folds[150:155] == split.folds[:5]).all()
    assert np.bincount(split.folds).tolist() == [40] * 5


def test_loops_on_a_line_are_copies_where_they_are_equal(tmp_path):
    matrix = rows(N, width=1)
    matrix[150:155] = matrix[:5]
    np.save(tmp_path / "a.npy", matrix)
    split = split_rows(read_embeddings(tmp_path / "a.npy"), SplitConfig())
    assert split.n_alike == 10
    assert (split.folds[150:155] == split.folds[:5]).all()
