from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.ensemble import IsolationForest as SkForest
from sklearn.ensemble._iforest import _average_path_length
from sklearn.metrics import roc_auc_score

from loopjax.detectors.isolation_forest import IsolationForest, average_path, path_lengths
from loopjax.detectors.rows import DataError
from loopjax.errors import UserError
from tests.detectors.small import odd_rows, rows

REAL = Path(__file__).parents[3] / "shared" / "data" / "musicradar-bass-392"


def test_correction_equals_sklearn():
    sizes = np.arange(0, 400)
    np.testing.assert_allclose(average_path(sizes), _average_path_length(sizes), rtol=1e-12)


def as_arrays(forest):
    """The trees of a fitted scikit-learn forest as feature, cut and path [T, heap]."""
    depth = max(1, int(np.ceil(np.log2(max(forest.max_samples_, 2)))))
    feature = np.full((len(forest.estimators_), 2 ** (depth + 1) - 1), -1, np.int32)
    cut, path = np.zeros(feature.shape, np.float32), np.zeros(feature.shape, np.float32)
    for t, estimator in enumerate(forest.estimators_):
        tree, columns = estimator.tree_, forest.estimators_features_[t]
        pending = [(0, 0, 0)]
        while pending:
            source, target, level = pending.pop()
            if tree.children_left[source] < 0:
                path[t, target] = level + average_path(tree.n_node_samples[source])
                continue
            feature[t, target] = columns[tree.feature[source]]
            # The largest float32 not above the float64 cut keeps x <= cut for float32 x.
            cut[t, target] = tree.threshold[source]
            if cut[t, target] > tree.threshold[source]:
                cut[t, target] = np.nextafter(cut[t, target], np.float32(-np.inf))
            pending.append((tree.children_left[source], 2 * target + 1, level + 1))
            pending.append((tree.children_right[source], 2 * target + 2, level + 1))
    return feature, cut, path


@pytest.mark.parametrize("max_features", [1.0, 0.5])
def test_sklearn_trees_give_sklearn_path_lengths(max_features):
    train, test = rows(300), np.concatenate([rows(50, seed=1), odd_rows()])
    theirs = SkForest(n_estimators=12, max_features=max_features, random_state=3).fit(train)
    trees = as_arrays(theirs)
    for t, (tree, columns) in enumerate(
        zip(theirs.estimators_, theirs.estimators_features_, strict=True)
    ):
        x = test[:, columns]
        leaves = tree.apply(x)
        depth = np.asarray(tree.decision_path(x).sum(axis=1)).ravel() - 1.0
        expected = depth + _average_path_length(tree.tree_.n_node_samples[leaves])
        found = path_lengths(*(part[t : t + 1] for part in trees), test)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    mean = path_lengths(*trees, test) / 12
    scores = np.exp2(-mean / average_path(theirs.max_samples_))
    np.testing.assert_allclose(scores, -theirs.score_samples(test), rtol=1e-6)


def test_trees_are_consistent():
    # Walking every training row down must reproduce the leaf sizes that the paths were made from.
    forest = IsolationForest(n_estimators=5, max_samples=64).fit(rows(64))
    depth = np.floor(np.log2(np.arange(forest.feature_.shape[1]) + 1))
    for feature, path in zip(forest.feature_, forest.path_, strict=True):
        leaves = (feature < 0) & (path > 0)
        assert np.all(path[leaves] >= depth[leaves])
        assert np.all(depth[feature >= 0] < 6)
        children = np.flatnonzero(feature >= 0)
        assert np.all((feature[2 * children + 1] >= 0) | (path[2 * children + 1] > 0))
        assert np.all((feature[2 * children + 2] >= 0) | (path[2 * children + 2] > 0))


def test_scores_are_distributed_like_sklearn():
    train, test = rows(400), np.concatenate([rows(100, seed=1), odd_rows()])
    ours = IsolationForest(n_estimators=300).fit(train).decision_function(test)
    theirs = -SkForest(n_estimators=300, random_state=0).fit(train).score_samples(test)
    other = -SkForest(n_estimators=300, random_state=1).fit(train).score_samples(test)
    seeds = np.abs(theirs - other).mean()
    assert np.abs(ours - theirs).mean() < 1.5 * seeds
    assert abs(ours.mean() - theirs.mean()) < 0.01


def test_rare_varying_feature_is_found():
    # 63 of 64 columns are constant: the quick tries mostly miss, the exact search must not.
    x = np.zeros((40, 64), np.float32)
    x[:, 11] = np.arange(40)
    forest = IsolationForest(n_estimators=10).fit(x)
    assert set(np.unique(forest.feature_)) == {-1, 11}
    scores = forest.decision_function(x)
    assert scores[0] > scores[20] and scores[39] > scores[20]


def test_duplicates_stop_a_branch():
    x = np.concatenate([np.zeros((60, 3)), np.ones((4, 3))]).astype(np.float32)
    forest = IsolationForest(n_estimators=5).fit(x)
    # One cut separates the two kinds of rows; both sides are then constant.
    assert np.all((forest.feature_ >= 0).sum(axis=1) == 1)
    assert forest.decision_function(x)[-1] > forest.decision_function(x)[0]


def test_share_of_features():
    x = rows(100)
    forest = IsolationForest(n_estimators=30, max_features=0.25).fit(x)
    used = [set(f[f >= 0]) for f in forest.feature_]
    assert max(map(len, used)) <= 4 and len(set.union(*used)) == 16


def test_counts_are_capped_and_shares_rounded_down():
    assert IsolationForest(3, max_samples=0.5).fit(rows(61)).max_samples_ == 30
    assert IsolationForest(3, max_samples=1000).fit(rows(61)).max_samples_ == 61
    assert IsolationForest(3).fit(rows(300)).max_samples_ == 256


@pytest.mark.parametrize(
    "wrong",
    [{"n_estimators": 0}, {"max_samples": 1.5}, {"max_features": 0}, {"max_samples": "all"}],
)
def test_bad_parameters(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        IsolationForest(**wrong).fit(rows())


def test_one_row_per_tree_is_refused():
    with pytest.raises(DataError, match="leaves 1 row"):
        IsolationForest(max_samples=1).fit(rows())


@pytest.mark.skipif(not REAL.exists(), reason="the shared bass embeddings are absent")
@pytest.mark.parametrize("name", ["ff", "nff"])
def test_agrees_with_sklearn_on_real_embeddings(name):
    with np.load(REAL / f"{name}.npz") as data:
        x, family = data["embeddings"], data["family"]
    normal = family != "bass_arpeggios_minor"
    train, test = x[normal][::2], np.concatenate([x[normal][1::2], x[~normal]])
    labels = np.r_[np.zeros(normal.sum() // 2), np.ones((~normal).sum())]
    theirs = [
        -SkForest(n_estimators=200, random_state=s).fit(train).score_samples(test) for s in range(3)
    ]
    ours = [
        IsolationForest(200, random_state=s).fit(train).decision_function(test) for s in range(3)
    ]
    between = np.mean([spearmanr(theirs[i], theirs[j])[0] for i, j in ((0, 1), (0, 2), (1, 2))])
    across = np.mean([spearmanr(a, b)[0] for a in ours for b in theirs])
    assert across >= between - 0.02
    aurocs = [[roc_auc_score(labels, s) for s in scores] for scores in (ours, theirs)]
    spread = max(np.ptp(aurocs[1]), 0.02)
    assert abs(np.mean(aurocs[0]) - np.mean(aurocs[1])) <= spread
