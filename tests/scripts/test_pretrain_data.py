import sys
from pathlib import Path

import jax
import numpy as np
import pytest

CLEAN, ODD, REVERSED = 0, 1, 2


@pytest.fixture(scope="module")
def play_backwards():
    """The scripts import one another by plain name, as when they are run."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    try:
        from pretrain_data import play_backwards
    finally:
        sys.path.pop(0)
    return play_backwards


@pytest.mark.parametrize("views", [1, 4])
def test_backwards_loops_are_relabeled_and_their_views_change_places(play_backwards, views):
    mel = np.random.default_rng(0).normal(size=(3, views, 5, 2)).astype(np.float32)
    labels = np.array([CLEAN, ODD, REVERSED])
    key = jax.random.key(0)
    flipped, new = play_backwards(mel, labels, (CLEAN, REVERSED), 1.0, key)
    assert new.tolist() == [REVERSED, ODD, CLEAN]
    np.testing.assert_array_equal(flipped[:, 0], mel[:, 0, ::-1])
    np.testing.assert_array_equal(flipped[:, 1:], mel[:, :0:-1, ::-1])


def test_only_the_share_is_played_backwards(play_backwards):
    mel = np.arange(400 * 3, dtype=np.float32).reshape(400, 1, 3, 1)
    labels = np.full(400, CLEAN)
    flipped, new = play_backwards(mel, labels, (CLEAN, REVERSED), 0.25, jax.random.key(1))
    backwards = np.asarray(new) == REVERSED
    assert 60 < backwards.sum() < 140
    np.testing.assert_array_equal(np.asarray(flipped)[~backwards], mel[~backwards])
    np.testing.assert_array_equal(np.asarray(flipped)[backwards], mel[backwards][:, :, ::-1])
