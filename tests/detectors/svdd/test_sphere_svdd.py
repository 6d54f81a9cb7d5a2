import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loopjax.detectors.knn import LocalKNN
from loopjax.detectors.rows import DataError
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.detectors.svdd.sphere_svdd import SphereSVDD
from loopjax.detectors.svdd.spheres import SphereRecipe, train_maps
from loopjax.errors import UserError
from loopjax.training.checkpoints import Checkpoints
from tests.detectors.small import rows

SHORT = SphereRecipe(steps=8, hidden_width=8)


def balls(count: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)).astype(np.float32), rng.uniform(0.5, 1.0, count)


def test_training_draws_balls_onto_their_centers():
    trained = SphereSVDD(steps=100, hidden_width=32).fit(rows(200))
    assert trained.losses_[0] == pytest.approx(1.0, abs=0.15)  # the identity keeps every ball
    assert trained.losses_[-10:].mean() < 0.9 * trained.losses_[:10].mean()
    assert np.abs(trained.map_["output"]).max() > 1e-3


@pytest.mark.parametrize("count", [40, 12])  # more rows than columns, and fewer
def test_untrained_it_is_standardized_knn_in_local_units(count):
    train, test = rows(count), rows(30, seed=1)
    ours = SphereSVDD(steps=0).fit(train)
    plain = LocalKNN().fit(train)
    unit = ours.norm_ ** (0.9 - 1.0)  # both divide d / r^.9, in other units of length
    np.testing.assert_allclose(
        ours.decision_function(test), unit * plain.decision_function(test), rtol=1e-4
    )
    np.testing.assert_allclose(ours.decision_scores_, unit * plain.decision_scores_, rtol=1e-4)


def test_heads_of_different_size_train_together_as_they_do_alone():
    parts = [balls(20, 5), balls(33, 9, seed=1)]
    seeds = [3, 4]
    centers, radii = (list(column) for column in zip(*parts, strict=True))
    together, losses = train_maps(centers, radii, seeds, SHORT)
    for h in range(2):
        alone, own = train_maps([centers[h]], [radii[h]], [seeds[h]], SHORT)
        np.testing.assert_allclose(losses[h], own[0], rtol=1e-5)
        for a, b in zip(together[h], alone[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_killed_training_goes_on_to_the_same_map(tmp_path, monkeypatch):
    centers, radii = balls(20, 5)

    def train(checkpoints):
        return train_maps([centers], [radii], [0], SHORT, checkpoints=checkpoints, every_steps=3)

    plain, losses = train(None)
    save = Checkpoints.save

    def killed(self, step, state):
        save(self, step, state)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(Checkpoints(tmp_path / "run", {"a": 1}))
    monkeypatch.undo()
    resumed, again = train(Checkpoints(tmp_path / "run", {"a": 1}))
    np.testing.assert_array_equal(again, losses)
    for a, b in zip(resumed[0], plain[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_sets_are_thinned_to_a_bounded_number_of_spheres():
    x = rows(300)
    thinned = SphereSVDD(steps=3, hidden_width=8, max_centers=50, batch_size=16).fit(x)
    assert thinned.centers_.shape[0] == 50
    assert thinned.decision_scores_.shape == (300,)
    assert thinned.decision_scores_.min() > 0  # no center finds itself


def test_copies_of_a_row_do_not_make_its_surroundings_infinitely_far():
    x = np.concatenate([rows(60), np.repeat(rows(60)[:1], 6, axis=0)])
    scores = SphereSVDD(steps=3, hidden_width=8).fit(x).decision_function(rows(60) + 1e-3)
    assert np.isfinite(scores).all() and scores[0] < np.median(scores)


def test_a_corpus_of_copies_is_refused():
    with pytest.raises(DataError, match="copies"):
        SphereSVDD(steps=1).fit(np.repeat(rows(10), 8, axis=0))


@pytest.mark.parametrize(
    "wrong", [{"n_neighbors": 0}, {"steps": -1}, {"density_exponent": 2.0}, {"learning_rate": 0.0}]
)
def test_bad_parameters(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SphereSVDD(**wrong).fit(rows())


def test_more_neighbors_keep_hidden_anomalies_from_vouching_for_each_other():
    """Three unnoticed anomalies of one kind among 100 rows, and twenty more of it to find."""
    rng = np.random.default_rng(1)
    place = rows(100).mean(axis=0) + 6 * rng.normal(size=16)
    hidden, new = (place + rng.normal(size=(n, 16)) for n in (3, 20))
    train = np.concatenate([rows(100), hidden])
    test = np.concatenate([rows(50, seed=2), new])
    labels = np.repeat([0, 1], [50, 20])
    found = {}
    for k in (3, 10):
        head = SphereSVDD(n_neighbors=k, steps=5, hidden_width=8).fit(train)
        found[k] = roc_auc_score(labels, head.decision_function(test))
    assert found[3] < 0.5 and found[10] > 0.95


def test_the_name_spheres_leads_here():
    with pytest.raises(UserError, match=r'SphereSVDD \(kind "sphere-svdd"\)'):
        DeepSVDD(network="spheres").fit(rows())
