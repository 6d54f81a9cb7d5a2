import numpy as np
import pytest

from loopjax.detectors import detector_kinds
from loopjax.detectors.crossfit import fit_and_cross_fit
from loopjax.detectors.ensemble import MEMBERS, Ensemble
from loopjax.detectors.knn import KNN
from loopjax.detectors.mahalanobis import Mahalanobis
from loopjax.detectors.pca import PCA
from loopjax.detectors.rows import RowBlocks
from loopjax.errors import ParameterError
from loopjax.experiment.load import load_config
from tests.detectors.small import odd_rows, rows

X = rows(60)
SHORT = {"pretrain_epochs": 0, "epochs": 0, "bn_warmup_passes": 1}


@pytest.mark.parametrize(("fusion", "fuse"), [("mean", np.mean), ("min", np.min)])
def test_members_are_standardized_by_their_cross_fitted_scores(fusion, fuse):
    knn, pca = KNN(n_neighbors=3), PCA(n_components=4)
    crossed = fit_and_cross_fit([knn, pca], X)
    new = np.concatenate([rows(20, seed=4), odd_rows()])
    expected = fuse(
        [
            (member.decision_function(new) - found.scores.mean()) / found.scores.std()
            for member, found in zip((knn, pca), crossed, strict=True)
        ],
        axis=0,
    )
    members = tuple(
        {"kind": kind, "params": params}
        for kind, params in (("knn", {"n_neighbors": 3}), ("pca", {"n_components": 4}))
    )
    ensemble = Ensemble(members, fusion=fusion).fit(X)
    np.testing.assert_allclose(ensemble.decision_function(new), expected, rtol=1e-9)


def test_every_other_detector_can_be_a_member():
    assert {*MEMBERS, "ensemble"} == set(detector_kinds())


def test_in_sample_scores_would_favor_a_member():
    """PCA rebuilds its own rows: their scores say nothing about how high those of new rows are."""
    wide = rows(30, width=64)
    pca = PCA(n_components=0.999)
    in_sample = pca.fit(wide).decision_scores_
    ensemble = Ensemble(("knn", {"kind": "pca", "params": {"n_components": 0.999}})).fit(wide)
    assert ensemble.means_[1] > 2 * in_sample.mean()
    new = ensemble.decision_function(rows(200, width=64, seed=1))
    assert abs(np.mean(new)) < 0.5


def test_a_corpus_is_scored_by_members_that_did_not_see_it():
    members = [KNN(), Mahalanobis()]
    crossed = np.stack([found.scores for found in fit_and_cross_fit(members, X)])
    standardized = (crossed - crossed.mean(axis=1)[:, None]) / crossed.std(axis=1)[:, None]
    ensemble = Ensemble(("knn", "mahalanobis"))
    (found,) = fit_and_cross_fit([ensemble], X)
    np.testing.assert_allclose(found.scores, standardized.mean(axis=0), rtol=1e-9)
    new = rows(20, seed=4)
    alone = Ensemble(("knn", "mahalanobis")).fit(X)
    np.testing.assert_array_equal(ensemble.decision_function(new), alone.decision_function(new))


def test_far_rows_do_not_give_every_fold_its_own_units():
    """Ensembles of the folds, standardized with or without these rows, flagged 12 % for 5 %."""
    flagged = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        normals = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 48))
        normals += 0.3 * rng.normal(size=normals.shape)
        normals[:3] *= 20
        ensemble = Ensemble(("local-knn", "mahalanobis"))
        fit_and_cross_fit([ensemble], normals[:100])
        flagged.append(np.mean(ensemble.decision_function(normals[100:]) > ensemble.threshold_))
    assert 0.02 <= np.mean(flagged) <= 0.09


def test_heads_of_two_recipes_are_members():
    members = tuple(
        {"kind": "deep-svdd", "params": {"network": network, "hidden_dims": (4,), **SHORT}}
        for network in ("standard", "residual")
    )
    ensemble = Ensemble(members)
    (found,) = fit_and_cross_fit([ensemble], X)
    assert len(ensemble.members_) == 2 and np.isfinite(found.scores).all()


def test_blocks_are_cross_fitted_as_a_matrix_is():
    folds = np.arange(len(X)) % 5
    blocks = RowBlocks(lambda numbers: (X[20 * i : 20 * i + 20] for i in numbers),
                       np.array([20, 20, 20]), X.shape[1])  # fmt: skip
    in_memory, streamed = Ensemble(("knn", "pca")), Ensemble(("knn", "pca"))
    (expected,) = fit_and_cross_fit([in_memory], X, folds)
    (found,) = fit_and_cross_fit([streamed], blocks, folds)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
    assert streamed.threshold_ == pytest.approx(in_memory.threshold_, rel=1e-4)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"members": ()}, "members is empty"),
        ({"members": ("ensemble",)}, "members.0 is of kind 'ensemble'"),
        ({"members": ("knn", "svm")}, "members.1 is of kind 'svm'; known: deep-svdd"),
        ({"members": ({"kind": "knn", "params": {"k": 3}},)}, "members.0: .*no parameter k"),
        ({"members": ({"kind": "knn", "k": 3},)}, "members.0 is .*expected a kind, or a mapping"),
        (
            {"members": ({"kind": "knn", "params": {"n_neighbors": 0}},)},
            r"members.0 \(knn\): n_neighbors must be at least 1",
        ),
        ({"fusion": "max"}, "fusion is 'max'"),
        ({"n_folds": 1}, "n_folds must be at least 2"),
    ],
)
def test_mistakes_name_the_member(params, message):
    with pytest.raises(ParameterError, match=message):
        Ensemble(**params).fit(X)


def test_a_file_lists_kinds_or_kinds_with_parameters(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: a\ndetectors:\n  - name: both\n    kind: ensemble\n"
        "    params: {members: [pca, {kind: knn, params: {n_neighbors: 2}}], fusion: min}\n",
        "utf-8",
    )
    (detector,) = load_config(path).detectors
    ensemble = Ensemble(**detector.params).fit(X)
    assert [member.kind for member in ensemble.members_] == ["pca", "knn"]
    assert ensemble.members_[1].get_params()["n_neighbors"] == 2


def test_the_seed_reaches_members_that_give_none():
    own = {"kind": "isolation-forest", "params": {"random_state": 3}}
    ensemble = Ensemble(("isolation-forest", own), random_state=7).fit(X)
    assert [member.get_params()["random_state"] for member in ensemble.members_] == [7, 3]
