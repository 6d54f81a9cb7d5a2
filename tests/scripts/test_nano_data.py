import jax
import numpy as np
import pytest

from scripts.nano.data import play_backwards

CLEAN, ANOMALOUS, REVERSED = 0, 1, 2


@pytest.mark.parametrize("views", [1, 4])
def test_backwards_loops_are_relabeled_and_their_views_change_places(views):
    mel = np.random.default_rng(0).normal(size=(3, views, 5, 2)).astype(np.float32)
    labels = np.array([CLEAN, ANOMALOUS, REVERSED])
    key = jax.random.key(0)
    flipped, new = play_backwards(mel, labels, (CLEAN, REVERSED), 1.0, key)
    assert new.tolist() == [REVERSED, ANOMALOUS, CLEAN]
    np.testing.assert_array_equal(flipped[:, 0], mel[:, 0, ::-1])
    np.testing.assert_array_equal(flipped[:, 1:], mel[:, :0:-1, ::-1])


def test_only_the_fraction_is_played_backwards():
    mel = np.arange(400 * 3, dtype=np.float32).reshape(400, 1, 3, 1)
    labels = np.full(400, CLEAN)
    flipped, new = play_backwards(mel, labels, (CLEAN, REVERSED), 0.25, jax.random.key(1))
    backwards = np.asarray(new) == REVERSED
    assert 60 < backwards.sum() < 140
    np.testing.assert_array_equal(np.asarray(flipped)[~backwards], mel[~backwards])
    np.testing.assert_array_equal(np.asarray(flipped)[backwards], mel[backwards][:, :, ::-1])
