import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from loopjax.encoders.load import load_encoder
from scripts.gpu_check import common
from scripts.nano import hits
from scripts.nano.average import average
from scripts.nano.data import play_backwards, stretch
from scripts.nano.rhythm import LAGS_FRAMES, rhythm_of
from scripts.render import midi

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


def test_stretching_changes_the_speed_of_all_views_alike():
    frames = np.arange(200, dtype=np.float32)
    mel = np.broadcast_to(frames[:, None], (5, 2, 200, 3))
    np.testing.assert_array_equal(stretch(mel, 0.0, jax.random.key(0)), mel)
    out = np.asarray(stretch(mel, 0.2, jax.random.key(0)))
    speed = out[:, 0, 1, 0]
    assert len(set(speed.tolist())) == 5 and (abs(speed - 1) <= 0.2).all()
    np.testing.assert_allclose(out[:, 1, 100, 2], 100 * speed, rtol=1e-5)
    np.testing.assert_allclose(
        out[speed > 1.01, 0, 199, 1], 199 * speed[speed > 1.01] % 200, rtol=0.01
    )


def clicks(step_frames, jitter_frames, n=8):
    rng = np.random.default_rng(0)
    mel = np.full((n, 1001, 64), -80.0, np.float32)
    for row in mel:
        for frame in range(5, 980, step_frames):
            row[
                frame + rng.integers(-jitter_frames, jitter_frames + 1) if jitter_frames else frame
            ] = -10.0
    return mel


def test_rhythm_targets_tell_a_grid_from_none():
    grid, loose = rhythm_of(clicks(20, 0)), rhythm_of(clicks(20, 5))
    assert LAGS_FRAMES[np.asarray(grid.lags).argmax(axis=1)].tolist() == [20] * 8
    peak, _, entropy = np.moveaxis(np.asarray(grid.regularity), 1, 0)
    loose_peak, _, loose_entropy = np.moveaxis(np.asarray(loose.regularity), 1, 0)
    assert (peak > 0.9).all() and (loose_peak < 0.6).all()
    assert (entropy + 0.5 < loose_entropy).all()


def test_an_average_lies_between_and_long_parts_may_stay():
    one, other = common.encoder("nano", "fp32"), load_encoder("loopjax-nano", "fp32")
    a, b = one.weights(), other.weights()
    half, kept = (average(one, other, 0.5, short_only) for short_only in (False, True))
    assert half.keys() == a.keys()
    long_only = {name for name in a if ".aff." in name or ".mel_conv." in name}
    assert long_only
    for name in a:
        np.testing.assert_allclose(half[name], (a[name] + b[name]) / 2, atol=1e-6)
        np.testing.assert_array_equal(kept[name], a[name] if name in long_only else half[name])


@pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not midi.SOUNDFONT.exists(),
    reason="needs fluidsynth and the FluidR3 GM soundfont",
)
def test_drum_strokes_come_as_labeled_shards(tmp_path):
    hits.write_shard(tmp_path, 0, seed=3, n=6)
    rows = pq.read_table(tmp_path / "shard-00000.parquet").to_pylist()
    samples = np.load(tmp_path / "shard-00000.npy")
    assert 0 < len(rows) <= 6
    assert rows[-1]["offset_samples"] + rows[-1]["length_samples"] == len(samples)
    for row in rows:
        assert row["program_name"] in hits.NOTES and row["degradation"] == "none"
        hit = samples[row["offset_samples"] :][: row["length_samples"]]
        assert 0.29 * 32767 < abs(hit).max() < 0.96 * 32767
        assert len(hit) <= 2 * 48_000
