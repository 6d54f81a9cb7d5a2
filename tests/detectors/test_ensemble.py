import numpy as np
import pytest

from loopjax.detectors import detector_kinds
from loopjax.detectors.crossfit import fit_and_cross_fit
from loopjax.detectors.ensemble import MEMBERS, Ensemble
from loopjax.detectors.knn import KNN
from loopjax.detectors.pca import PCA
from loopjax.errors import ParameterError
from loopjax.experiment.load import load_config
from tests.detectors.small import odd_rows, rows

X = rows(60)


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


def test_a_corpus_is_cross_fitted_in_units_that_need_no_factor():
    ensemble = Ensemble(("knn", "mahalanobis"))
    (found,) = fit_and_cross_fit([ensemble], X)
    fold = found.folds == 2
    alone = Ensemble(("knn", "mahalanobis")).fit(X[~fold])
    np.testing.assert_array_equal(found.scores[fold], alone.decision_function(X[fold]))


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
