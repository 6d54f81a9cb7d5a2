import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from loopjax.errors import UserError
from loopjax.training import keys
from loopjax.training import loop as training_loop
from loopjax.training import steps as training
from loopjax.training.checkpoints import Checkpoints
from loopjax.training.recipe import EPOCH_METRICS, Hyperparams, Recipe
from scripts.aot.hlo import Module

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Line:
    """Squared error of y = slope x + noise-free target; counts the rows it has seen in `stats`."""

    def train_losses(self, params, stats, rows, weights, key, momentum, aux):
        seen = stats["seen"].at[rows[:, 2].astype(jnp.int32)].add(weights)
        return (rows[:, 0] * params["slope"] - rows[:, 1]) ** 2, {"seen": seen}

    def eval_losses(self, params, stats, rows, aux):
        return (rows[:, 0] * params["slope"] - rows[:, 1]) ** 2 + aux.get("penalty", 0.0)

    def begin_epoch(self, params, stats, aux, epoch, evaluate):
        # A penalty that grows from epoch 3 on makes the validation loss rise again.
        return {"penalty": jnp.maximum(epoch - 2, 0).astype(jnp.float32)} if aux else aux


N_ROWS = 37
X = np.random.default_rng(0).normal(size=(N_ROWS, 1)).astype(np.float32)
DATA = np.concatenate([X, 3 * X, np.arange(N_ROWS)[:, None]], axis=1).astype(np.float32)


def setup(n_train=29, val=True, aux=None, slopes=(0.0,), seed=0, max_epochs=6, patience=10):
    recipe = Recipe(Line(), batch_size=8)
    n_heads = len(slopes)
    start = [
        training.start(
            {"slope": np.float32(slope)}, {"seen": np.zeros(64, np.float32)}, dict(aux or {}), s
        )
        for s, slope in enumerate(slopes, seed)
    ]
    state = training_loop.place(training_loop.stack(start), None)
    rows = np.arange(N_ROWS)
    split = training_loop.pad_split(
        [rows[:n_train]] * n_heads, [rows[n_train:] if val else rows[:0]] * n_heads, 8
    )
    rates = (np.full(n_heads, v, np.float32) for v in (0.1, 0.01, 6, 0.0))
    limits = (np.full(n_heads, v, np.int32) for v in (max_epochs, patience))
    hyperparams = Hyperparams(*rates, *limits)
    return (
        recipe,
        state,
        training_loop.place(training_loop.pad_rows(DATA), None),
        split,
        hyperparams,
    )


def test_every_row_is_seen_once_per_epoch():
    state, _ = training_loop.run(*setup(max_epochs=4))
    np.testing.assert_array_equal(np.asarray(state.stats["seen"])[0, :29], np.full(29, 4))
    assert np.asarray(state.stats["seen"])[0, 29:].sum() == 0


def test_a_last_batch_of_one_row_is_left_out():
    state, _ = training_loop.run(*setup(n_train=25, max_epochs=40, patience=100))
    seen = np.asarray(state.stats["seen"])[0, :25]
    assert seen.sum() == 40 * 24
    assert seen.min() < 40  # another row each epoch
    assert seen.max() <= 40 and seen.min() > 30


def test_heads_with_fewer_rows_take_fewer_steps():
    """In one call, whose loop runs as often as the head with most rows needs."""
    recipe, state, data, _, hyperparams = setup(slopes=(0.0, 0.0), max_epochs=4)
    rows = np.arange(N_ROWS)
    split = training_loop.pad_split([rows[:29], rows[:9]], [rows[29:]] * 2, 8)
    state, history = training_loop.run(recipe, state, data, split, hyperparams, heads_per_call=2)
    seen = np.asarray(state.stats["seen"]).sum(axis=1)
    np.testing.assert_array_equal(seen, [4 * 29, 4 * 8])
    assert np.isfinite(history).all()


def test_compiled_steps_are_few_in_number_and_enough():
    recipe = training.Recipe(Line(), batch_size=8)
    counts = np.arange(1, 3000)
    needed = training.steps_per_epoch(recipe, counts)
    taken = np.array([training_loop.loop_steps(recipe, count) for count in counts])
    assert np.all(taken >= needed) and np.all(taken <= np.maximum(needed * 1.125, needed))
    assert np.array_equal(taken[needed <= 16], needed[needed <= 16])
    assert len(set(taken.tolist())) < 60


def test_the_compiler_knows_how_often_every_loop_runs():
    """A GPU makes the host wait at every step of a loop whose end only the data tell."""
    recipe, state, data, split, hyperparams = setup()
    one = training_loop.unstack(state, 0)
    rows, count = split.train[0], split.n_train[0]
    own = Hyperparams(*(column[0] for column in hyperparams))
    lowered = [
        training.advance.lower(
            state, data, split, hyperparams, recipe=recipe, epochs=5, loop_steps=4
        ),
        training.advance_block.lower(
            one, data, rows, count, own, np.uint32(1), recipe=recipe, loop_steps=4
        ),
        training.warmup_statistics.lower(recipe, one, data, rows, count, 5, 4),
    ]
    for program in lowered:
        loops = Module(program.compile().as_text()).whiles()
        assert loops and None not in loops


def test_orders_differ_between_epochs_and_seeds():
    orders = {
        tuple(np.asarray(training._permutation(keys.derive(key, e), 16, 11))[:11])
        for key in (np.array([1, 2], np.uint32), np.array([3, 4], np.uint32))
        for e in range(20)
    }
    assert len(orders) == 40
    assert all(sorted(order) == list(range(11)) for order in orders)


def test_random_bits_are_even_and_independent():
    key = np.array([7, 9], np.uint32)
    draws = np.stack([np.asarray(keys.random_bits(keys.derive(key, i), 4096)) for i in range(64)])
    ones = np.unpackbits(draws.view(np.uint8), axis=1).mean()
    assert abs(ones - 0.5) < 0.001
    low = (draws < 0.2 * 2**32).astype(float)
    assert abs(low.mean() - 0.2) < 0.003
    # Neither along a draw nor between draws of neighboring numbers.
    assert abs(np.corrcoef(low[:, :-1].ravel(), low[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(low[:-1].ravel(), low[1:].ravel())[0, 1]) < 0.01


def test_loss_falls_and_the_schedule_is_a_cosine():
    state, history = training_loop.run(*setup())
    losses, rates = history[0, :, 0], history[0, :, 2]
    assert np.all(np.diff(losses) < 0)
    expected = 0.01 + 0.045 * (1 + np.cos(np.pi * np.arange(6) / 6))
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert float(state.params["slope"][0]) > 0.5


def test_patience_keeps_the_best_weights():
    state, history = training_loop.run(
        *setup(aux={"penalty": np.float32(0)}, max_epochs=50, patience=3)
    )
    val = history[0, :, 1]
    best = int(np.argmin(val))
    assert best == 2 and len(val) == best + 3 + 1
    assert int(state.best_epoch[0]) == best
    assert float(state.best_loss[0]) == pytest.approx(val[best])
    assert float(state.best_params["slope"][0]) < float(state.params["slope"][0])


def test_a_loss_that_only_ties_does_not_count_as_better():
    # Zero learning rate: the loss never changes, so epoch 0 stays the best.
    recipe, state, data, split, hyperparams = setup(max_epochs=50, patience=4)
    hyperparams = hyperparams._replace(
        learning_rate=np.zeros(1, np.float32), min_learning_rate=np.zeros(1, np.float32)
    )
    state, history = training_loop.run(recipe, state, data, split, hyperparams)
    assert history.shape[1] == 5 and int(state.best_epoch[0]) == 0


def test_without_validation_the_last_weights_are_the_best():
    state, history = training_loop.run(*setup(val=False, patience=1))
    assert history.shape[1] == 6 and np.isnan(history[0, :, 1]).all()
    assert float(state.best_params["slope"][0]) == float(state.params["slope"][0])


def test_a_loss_that_is_not_finite_stops():
    recipe, state, data, split, hyperparams = setup(max_epochs=50)
    state, history = training_loop.run(
        recipe, state, data.at[5, 1].set(jnp.nan), split, hyperparams
    )
    assert history.shape[1] == 1 and int(state.best_epoch[0]) == -1


@pytest.mark.parametrize("heads_per_call", [1, 2, 3])
def test_heads_train_as_if_alone(heads_per_call):
    slopes = [0.0, 2.9, -4.0]
    alone = [training_loop.run(*setup(slopes=[s], seed=h)) for h, s in enumerate(slopes)]
    state, history = training_loop.run(*setup(slopes=slopes), heads_per_call=heads_per_call)
    for h, (one, curve) in enumerate(alone):
        np.testing.assert_allclose(history[h], curve[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(state.params["slope"][h], one.params["slope"][0], rtol=1e-6)


def test_one_program_serves_any_number_of_heads_on_a_cpu():
    training_loop.run(*setup(slopes=[1.0, 2.0]))
    compiled = training.advance._cache_size()
    training_loop.run(*setup(slopes=[1.0, 2.0, 4.0]))
    assert training.advance._cache_size() == compiled


def test_a_stopped_head_waits_for_the_others():
    recipe, state, data, split, hyperparams = setup(slopes=[3.0, 0.0], max_epochs=12, patience=1)
    # Head 0 starts at the optimum and cannot improve.
    state, history = training_loop.run(recipe, state, data, split, hyperparams)
    assert np.isnan(history[0, -1]).all() and not np.isnan(history[1, -1, 0])
    assert int(state.epoch[0]) < int(state.epoch[1])


def test_epochs_in_one_call_equal_epochs_in_many(monkeypatch):
    together = training_loop.run(*setup(max_epochs=7))[1]
    monkeypatch.setattr(training_loop, "epochs_per_call", lambda rows, batch: 1)
    np.testing.assert_array_equal(training_loop.run(*setup(max_epochs=7))[1], together)


def test_progress_is_reported_epoch_by_epoch():
    seen = []
    training_loop.run(
        *setup(max_epochs=3), on_epoch=lambda epoch, metrics: seen.append((epoch, metrics))
    )
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert set(seen[0][1]) == set(EPOCH_METRICS)


def test_a_run_resumes_to_the_same_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "epochs_per_call", lambda rows, batch: 2)
    told = []
    whole_state, whole = training_loop.run(
        *setup(max_epochs=9), on_epoch=lambda epoch, metrics: told.append((epoch, metrics))
    )

    class Killed(Exception):
        pass

    def kill(epoch, metrics):
        if epoch == 5:
            raise Killed

    with pytest.raises(Killed):
        training_loop.run(
            *setup(max_epochs=9), checkpoints=Checkpoints(tmp_path, {"a": 1}), every_epochs=2,
            on_epoch=kill,
        )  # fmt: skip
    calls, advance = [], training_loop.advance
    monkeypatch.setattr(
        training_loop, "advance", lambda *args, **kw: calls.append(1) or advance(*args, **kw)
    )
    epochs = []
    state, history = training_loop.run(
        *setup(max_epochs=9), checkpoints=Checkpoints(tmp_path, {"a": 1}), every_epochs=2,
        on_epoch=lambda epoch, metrics: epochs.append((epoch, metrics)),
    )  # fmt: skip
    assert len(calls) == 3  # from epoch 4, the last committed state, not the start
    assert epochs == told
    np.testing.assert_array_equal(history, whole)
    np.testing.assert_array_equal(state.params["slope"], whole_state.params["slope"])
    again = []
    training_loop.run(
        *setup(max_epochs=9), checkpoints=Checkpoints(tmp_path, {"a": 1}), every_epochs=2,
        on_epoch=lambda epoch, metrics: again.append((epoch, metrics)),
    )  # fmt: skip
    assert again == told
    assert len(calls) == 3  # finished


def test_checkpoints_of_another_run_are_refused(tmp_path):
    Checkpoints(tmp_path, {"data": 1, "lr": 0.1}).close()
    with pytest.raises(UserError, match=r"another run \(different: lr\)"):
        Checkpoints(tmp_path, {"data": 1, "lr": 0.2})
    (tmp_path / "run.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path, {"data": 1, "lr": 0.1})


def test_adamw_decays_every_parameter():
    params = {"w": jnp.array([1.0, -2.0])}
    optimizer = training.start(params, {}, {}, 0).optimizer
    stepped, _ = training.adamw_step(params, optimizer, {"w": jnp.zeros(2)}, 0.1, 0.5)
    np.testing.assert_allclose(stepped["w"], [0.95, -1.9], rtol=1e-6)


@pytest.mark.slow
def test_batches_spread_over_devices_give_the_same_weights(tmp_path):
    script = tmp_path / "spread.py"
    script.write_text(
        "import numpy as np\n"
        "from loopjax.detectors.svdd.estimator import DeepSVDD\n"
        "x = np.random.default_rng(0).normal(size=(50, 16)).astype('float32')\n"
        "fits = [DeepSVDD(hidden_dims=(8, 4), pretrain_epochs=3, epochs=3, batch_size=16,\n"
        "                 data_parallel=spread).fit(x) for spread in (False, True)]\n"
        "import jax\n"
        "assert len(jax.devices()) == 4\n"
        "one, four = (fit.decision_scores_ for fit in fits)\n"
        "np.testing.assert_allclose(one, four, rtol=1e-4)\n",
        "utf-8",
    )
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, check=True
    )
