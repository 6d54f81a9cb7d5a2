import numpy as np
import pytest
from scipy import stats

from loopjax.evaluation.paired import compare_paired


def values(by_group: dict[str, list[float]]) -> dict[tuple[str, int], float]:
    return {(g, s): v for g, seeds in by_group.items() for s, v in enumerate(seeds)}


def test_difference_interval_and_tests_are_over_the_shared_groups_and_seeds():
    rng = np.random.default_rng(0)
    second = values({f"g{i}": list(rng.uniform(0.5, 0.9, 3)) for i in range(12)})
    first = {key: value + rng.normal(0.05, 0.02) for key, value in second.items()}
    found = compare_paired(first | {("only here", 0): 1.0}, second)
    assert found is not None
    differences = np.array([first[key] - second[key] for key in sorted(second)])
    means = differences.reshape(12, 3).mean(axis=1)  # sorted by group, then seed
    assert found.difference.value == pytest.approx(means.mean())
    assert found.difference.low is not None and found.difference.high is not None
    assert 0.03 < found.difference.low < found.difference.value < found.difference.high < 0.07
    assert (found.groups_won, found.n_groups) == (int((means > 0).sum()), 12)
    assert found.p_groups == pytest.approx(stats.wilcoxon(means).pvalue)
    assert found.p_groups_seeds == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_groups_count_alike_however_many_seeds_they_have():
    found = compare_paired(
        values({"a": [1.0], "b": [0.0] * 9}), values({"a": [0.0], "b": [0.0] * 9})
    )
    assert found is not None and found.difference.value == 0.5


def test_equal_methods_have_no_p_value_and_strangers_no_comparison():
    same = values({"a": [0.5, 0.6], "b": [0.7, 0.8]})
    found = compare_paired(same, same)
    assert found is not None
    assert found.p_groups is None and found.difference.value == 0.0 and found.groups_won == 0
    assert compare_paired(same, values({"c": [0.5]})) is None
