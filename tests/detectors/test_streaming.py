import numpy as np
import pytest

from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.errors import UserError
from loopjax.training import loop
from tests.detectors.small import TINY, blocks_of, odd_rows, rows

X = rows(160)


def blocks(size=50):
    return blocks_of(X, size)


def test_streamed_head_learns_and_scores_like_a_resident_one():
    streamed = DeepSVDD(**TINY).fit(blocks())
    resident = DeepSVDD(**TINY).fit(X)
    for stage in ("pretrain", "one-class"):
        losses = streamed.history_[stage]["train_loss"]
        assert len(losses) == 5 and losses[-1] < losses[0]
        assert losses[-1] == pytest.approx(resident.history_[stage]["train_loss"][-1], rel=0.3)
    assert len(streamed.train_rows_) == 128 and streamed.decision_scores_.shape == (160,)
    center = streamed.latents(X)[streamed.train_rows_].mean(axis=0)
    assert np.linalg.norm(center - streamed.center_) < np.linalg.norm(streamed.center_)
    assert np.median(streamed.decision_function(odd_rows())) > streamed.threshold_
    np.testing.assert_allclose(
        streamed.decision_function(blocks(33)), streamed.decision_function(X), rtol=1e-5
    )


def test_streamed_training_resumes(tmp_path, monkeypatch):
    told = []
    whole = DeepSVDD(**TINY, on_epoch=lambda *call: told.append(call)).fit(blocks())

    def kill(stage, epoch, metrics):
        if (stage, epoch) == ("one-class", 3):
            raise KeyboardInterrupt

    recipe = {**TINY, "checkpoint_dir": tmp_path, "checkpoint_every_epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        DeepSVDD(**recipe, on_epoch=kill).fit(blocks())
    trained, advance_epoch = [], loop.advance_epoch
    monkeypatch.setattr(
        loop, "advance_epoch", lambda *args, **kw: trained.append(1) or advance_epoch(*args, **kw)
    )
    seen = []
    resumed = DeepSVDD(**recipe, on_epoch=lambda *call: seen.append(call)).fit(blocks())
    assert seen == told
    assert len(trained) == 3  # epochs 2 to 4 of the second stage
    np.testing.assert_array_equal(resumed.decision_scores_, whole.decision_scores_)


@pytest.mark.parametrize(
    "wrong", [{"objective": "soft-boundary"}, {"compat": "reference"}, {"data_parallel": True}]
)
def test_what_needs_the_matrix_is_refused(wrong):
    with pytest.raises(UserError, match="whole matrix"):
        DeepSVDD(**TINY, **wrong).fit(blocks())
