import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from loopjax.detectors.rows import DataError
from loopjax.detectors.svdd.estimator import REFERENCE, DeepSVDD
from loopjax.detectors.svdd.rows import duplicating_shuffle
from loopjax.detectors.svdd.together import fit_heads
from loopjax.errors import ModelCheckError, UserError
from tests.detectors.small import TINY, odd_rows, rows

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def fitted():
    return DeepSVDD(**TINY).fit(rows())


def test_losses_fall_and_weights_move(fitted):
    for stage in ("pretrain", "one-class"):
        losses = fitted.history_[stage]["train_loss"]
        assert len(losses) == 5 and losses[-1] < losses[0]
    untrained = DeepSVDD(**{**TINY, "pretrain_epochs": 0, "epochs": 0}).fit(rows())
    before, after = untrained.encoder_, fitted.encoder_
    assert before.keys() == after.keys()
    for name in before:
        assert not np.array_equal(before[name], after[name]), name


def test_score_is_the_mean_squared_distance_to_the_center(fitted):
    latents = fitted.latents(odd_rows())
    expected = np.mean((latents.astype(np.float64) - fitted.center_) ** 2, axis=1)
    np.testing.assert_allclose(fitted.decision_function(odd_rows()), expected, rtol=1e-12)
    assert latents.shape == (12, 4) and fitted.center_.shape == (4,)


def test_center_is_the_mean_latent_of_the_weights_that_go_on():
    pretrained = DeepSVDD(**{**TINY, "epochs": 0}).fit(rows())
    expected = pretrained.latents(rows())[pretrained.train_rows_].mean(axis=0)
    np.testing.assert_allclose(pretrained.center_, expected, rtol=1e-5, atol=1e-6)
    both = DeepSVDD(**TINY).fit(rows())
    np.testing.assert_array_equal(both.center_, pretrained.center_)


def test_best_weights_are_scored():
    # A large learning rate overshoots at once; the best epoch then is not the last.
    detector = DeepSVDD(
        **{**TINY, "learning_rate": 0.3, "min_learning_rate": 0.3, "epochs": 30, "patience": 3}
    ).fit(rows())
    history = detector.history_["one-class"]["val_loss"]
    best = detector.best_epochs_["one-class"]
    assert best == int(np.argmin(history)) and best < len(history) - 1
    held_out = np.setdiff1d(np.arange(60), detector.train_rows_)
    assert detector.decision_scores_[held_out].mean() == pytest.approx(history[best], rel=1e-4)


def test_split_is_true_and_seeded(fitted):
    assert len(fitted.train_rows_) == 48 == len(set(fitted.train_rows_))
    other = DeepSVDD(**TINY, random_state=1).fit(rows())
    assert set(other.train_rows_) != set(fitted.train_rows_)
    assert not np.allclose(other.decision_scores_, fitted.decision_scores_)


def test_batchnorm_statistics_are_warm_before_early_stopping(fitted):
    # The running statistics of the reference lag, so that its first validation losses rise. At our
    # own scale of 0.1 the outputs are too small for the rise to stand out of eight epochs' noise.
    x = rows(120, 32) * 0.05
    recipe = {**TINY, "pretrain_epochs": 8, "epochs": 0, "pretrain_learning_rate": 1e-5}
    recipe["bn_scale"] = 1.0
    warm = DeepSVDD(**recipe, bn_warmup_passes=5).fit(x).history_["pretrain"]["val_loss"]
    cold = DeepSVDD(**recipe, bn_warmup_passes=0).fit(x).history_["pretrain"]["val_loss"]
    assert np.ptp(warm) < 0.3 * np.ptp(cold)


def test_statistics_are_warm_without_any_training():
    # The outputs then have the size that the scale gives them, whatever the rows' own scale.
    recipe = {**TINY, "pretrain_epochs": 0, "epochs": 0}
    loud, soft = (DeepSVDD(**recipe).fit(rows() * scale) for scale in (100.0, 1.0))
    assert loud.threshold_ == pytest.approx(soft.threshold_, rel=0.01)


def test_reference_shuffle_copies_rows_like_random_shuffle():
    x = np.arange(392, dtype=float)[:, None] * np.ones((1, 2))
    random.seed(11)
    random.shuffle(x)
    np.testing.assert_array_equal(duplicating_shuffle(392, 11), x[:, 0])
    kept = len(set(duplicating_shuffle(392, 11)))
    assert 180 < kept < 220  # about half of the rows survive (facts, section 2)


def test_compat_reference_follows_its_procedure():
    detector = DeepSVDD(**{**REFERENCE, **TINY, "hidden_dims": (8, 4)}).fit(rows())
    assert len(set(detector.train_rows_)) < len(detector.train_rows_) == 48
    expected = np.quantile(detector.decision_scores_[detector.train_rows_], 0.95)
    assert detector.threshold_ == pytest.approx(expected)
    true_split = DeepSVDD(**{**REFERENCE, **TINY, "compat": "reference-true-split"}).fit(rows())
    assert len(set(true_split.train_rows_)) == 48


def test_compat_takes_the_center_from_the_last_weights():
    recipe = {
        **TINY,
        "epochs": 0,
        "pretrain_epochs": 30,
        "pretrain_learning_rate": 0.3,
        "patience": 5,
    }
    recipe["min_learning_rate"] = 0.3
    last = DeepSVDD(**recipe, compat="reference-true-split").fit(rows())
    best = DeepSVDD(**recipe, bn_warmup_passes=0, bn_scale=1.0).fit(rows())
    assert last.history_ == best.history_
    assert best.best_epochs_["pretrain"] < len(best.history_["pretrain"]["val_loss"]) - 1
    assert not np.allclose(last.center_, best.center_, rtol=0.05)


def test_seeds_together_equal_serial_fits(fitted):
    heads = fit_heads([DeepSVDD(**TINY, random_state=seed) for seed in range(3)], rows())
    np.testing.assert_allclose(heads[0].decision_scores_, fitted.decision_scores_, rtol=1e-5)
    alone = DeepSVDD(**TINY, random_state=2).fit(rows())
    np.testing.assert_allclose(heads[2].decision_scores_, alone.decision_scores_, rtol=1e-5)
    assert heads[2].threshold_ == pytest.approx(alone.threshold_)
    assert heads[1].random_state == 1


def test_heads_may_differ_in_rates_and_rows():
    x = rows(90)
    heads = [DeepSVDD(**TINY), DeepSVDD(**{**TINY, "learning_rate": 1e-2}, weight_decay=0.1)]
    subsets = [np.arange(60), np.arange(30, 90)]
    fit_heads(heads, x, subsets)
    for head, subset in zip(heads, subsets, strict=True):
        alone = DeepSVDD(**head.get_params()).fit(x[subset])
        np.testing.assert_allclose(head.decision_scores_, alone.decision_scores_, rtol=1e-4)
    with pytest.raises(UserError, match="may not differ in dropout; only in random_state"):
        fit_heads([DeepSVDD(**TINY), DeepSVDD(**TINY, dropout=0.5)], x)


def test_soft_boundary_leaves_nu_of_the_rows_outside():
    detector = DeepSVDD(
        **{**TINY, "epochs": 25}, objective="soft-boundary", nu=0.2, warmup_epochs=5, patience=50
    ).fit(rows(100))
    scores = detector.decision_scores_[detector.train_rows_]
    outside = np.mean(scores > detector.radius_**2)
    assert outside == pytest.approx(0.2, abs=0.06)


def test_underflow_is_refused():
    with pytest.raises(ModelCheckError, match=r"collapsed: mean score.*bn_shift=False"):
        DeepSVDD(**TINY, batch_norm=False).fit(rows() * 1e-12)


# One huge step kills every ReLU, so that the biases alone remain; or the biases are learned.
DEAD_UNITS = {"epochs": 30, "learning_rate": 3.0, "min_learning_rate": 3.0, "activation": "relu"}
LEARNED = {"pretrain_epochs": 0, "epochs": 1500, "learning_rate": 0.01, "min_learning_rate": 1e-7}


@pytest.mark.parametrize("recipe", [DEAD_UNITS, LEARNED | {"weight_decay": 0.0}])
def test_a_constant_map_is_refused(recipe):
    free = {"batch_norm": False, "bias": True, "dropout": 0.0, "validation_fraction": 0.0}
    with pytest.raises(ModelCheckError, match="collapsed: the latents kept"):
        DeepSVDD(**{**TINY, **recipe, **free}).fit(rows(40))


def test_shrinkage_is_the_ratio_of_latent_variances(fitted):
    before = DeepSVDD(**{**TINY, "epochs": 0}).fit(rows())
    assert before.latent_shrinkage_ == 1.0
    spread = [d.latents(rows())[d.train_rows_].var(axis=0).mean() for d in (fitted, before)]
    assert fitted.latent_shrinkage_ == pytest.approx(spread[0] / spread[1], rel=1e-4)
    assert fitted.latent_shrinkage_ < 1.0


def test_divergence_is_refused():
    with pytest.raises(ModelCheckError, match="diverged"):
        DeepSVDD(**{**TINY, "pretrain_learning_rate": 1e30}).fit(rows())


def test_bias_free_network_has_no_shift():
    detector = DeepSVDD(**TINY, bn_shift=False).fit(rows())
    assert not any(name.endswith("/bias") for name in detector.encoder_)
    assert np.isfinite(detector.decision_scores_).all()


def test_bfloat16_agrees_roughly(fitted):
    rough = DeepSVDD(**TINY, precision="bfloat16").fit(rows())
    scores = rough.decision_scores_ / fitted.decision_scores_
    assert scores.min() > 0.8 and scores.max() < 1.25


def test_from_arrays_rebuilds_a_head(fitted):
    rebuilt = DeepSVDD.from_arrays(fitted.encoder_, fitted.center_, training_rows=rows())
    assert rebuilt.hidden_dims == (8, 4) and rebuilt.batch_norm and not rebuilt.bias
    np.testing.assert_array_equal(
        rebuilt.decision_function(odd_rows()), fitted.decision_function(odd_rows())
    )
    given = DeepSVDD.from_arrays(fitted.encoder_, fitted.center_, threshold=0.25)
    assert given.threshold_ == 0.25


def test_from_arrays_lists_what_is_wrong(fitted):
    arrays = fitted.encoder_
    wrong = {k: v for k, v in arrays.items() if k != "layers/0/bn/var"} | {"layers/0/extra": 1.0}
    with pytest.raises(UserError, match=r"missing \['layers/0/bn/var'\].*\['layers/0/extra'\]"):
        DeepSVDD.from_arrays(wrong, fitted.center_, threshold=1.0)
    with pytest.raises(UserError, match="center has shape"):
        DeepSVDD.from_arrays(arrays, np.zeros(3), threshold=1.0)
    with pytest.raises(UserError, match="training_rows or a threshold"):
        DeepSVDD.from_arrays(arrays, fitted.center_)


@pytest.mark.parametrize(
    "wrong",
    [
        {"network": "resnet"},
        {"objective": "two-class"},
        {"hidden_dims": "exp3"},
        {"precision": "fp8"},
        {"batch_size": 1},
        {"epochs": -1},
        {"validation_fraction": 0.95},
        {"nu": 0.0},
        {"bn_scale": 0.0},
        {"patience": 0},
    ],
)
def test_bad_parameters(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        DeepSVDD(**{**TINY, **wrong}).fit(rows())


def test_progress_names_the_stage():
    seen = []
    DeepSVDD(**TINY, on_epoch=lambda *call: seen.append(call)).fit(rows())
    assert [(stage, epoch) for stage, epoch, _ in seen] == [
        (stage, epoch) for stage in ("pretrain", "one-class") for epoch in range(5)
    ]


def test_checkpoints_of_other_data_are_refused(tmp_path):
    DeepSVDD(**TINY, checkpoint_dir=tmp_path).fit(rows())
    with pytest.raises(UserError, match="different: data_sha256"):
        DeepSVDD(**TINY, checkpoint_dir=tmp_path).fit(rows(seed=3))


FIT = """
import sys
import numpy as np
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.training import loop
from tests.detectors.small import rows
calls, advance = [], loop.advance
loop.advance = lambda *args, **options: calls.append(1) or advance(*args, **options)
detector = DeepSVDD(
    hidden_dims=(8, 4), pretrain_epochs=400, epochs=400, batch_size=16, patience=400,
    checkpoint_dir=sys.argv[1], checkpoint_every_epochs=10,
    on_epoch=lambda stage, epoch, metrics: print(stage, epoch, flush=True),
).fit(rows())
np.save(sys.argv[2], detector.decision_scores_)
print(len(calls))
"""


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_killed_ten_times_it_ends_the_same(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(FIT, "utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def launch(folder, scores):
        return subprocess.Popen(
            [sys.executable, str(script), str(folder), str(scores)],
            env=env, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    whole = launch(tmp_path / "whole", tmp_path / "whole.npy")
    *told, n_calls = whole.communicate()[0].splitlines()
    assert len(told) == 800
    draw, n_read = random.Random(4), 0
    for _ in range(10):
        process = launch(tmp_path / "killed", tmp_path / "killed.npy")
        n_read += draw.randrange(1, 90)  # those of before are told again
        for _ in range(n_read):
            process.stdout.readline()
        time.sleep(draw.random() * 0.05)  # lands inside an epoch or inside a save
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = launch(tmp_path / "killed", tmp_path / "killed.npy")
    *again, n_further = last.communicate()[0].splitlines()
    assert last.returncode == 0 and again == told
    assert int(n_further) < int(n_calls)
    np.testing.assert_array_equal(np.load(tmp_path / "killed.npy"), np.load(tmp_path / "whole.npy"))


def test_rows_that_batch_norm_takes_for_constant_are_refused():
    x = rows(60)
    with pytest.raises(DataError, match=r"columns scatter by 2.6e-08 on average"):
        DeepSVDD(**TINY).fit(x * np.float32(1e-8))
    with pytest.raises(DataError, match="all rows are identical"):
        DeepSVDD(**TINY).fit(np.zeros_like(x))
    scores = DeepSVDD(**TINY).fit(x).decision_scores_
    small = DeepSVDD(**TINY).fit(x * np.float32(1e-3)).decision_scores_
    assert np.corrcoef(np.log(scores), np.log(small))[0, 1] > 0.9
