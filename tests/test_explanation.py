import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from loopjax.detectors.pca import PCA
from loopjax.embedding.chain import embed
from loopjax.embedding.muted import mute_band, mute_segment
from loopjax.embedding.samples import embed_arrays
from loopjax.errors import UserError
from loopjax.explanation import explain
from loopjax.model import Model
from loopjax.store.read import Embeddings
from tests.spectrum_encoder import RATE, DistanceDetector, SpectrumEncoder, tone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain tone, and the same tone with a burst of 9 to 11 kHz in its sixth eighth."""
    folder = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    plain = tone()
    spectrum = np.fft.rfft(rng.normal(size=RATE // 2))
    frequency_hz = np.fft.rfftfreq(RATE // 2, 1 / RATE)
    spectrum[(frequency_hz < 9000) | (frequency_hz > 11000)] = 0
    odd = plain.copy()
    odd[5 * RATE // 2 : 6 * RATE // 2] += 0.5 * np.fft.irfft(spectrum, RATE // 2).astype("f4")
    soundfile.write(folder / "plain.wav", plain, RATE, "FLOAT")
    soundfile.write(folder / "odd.wav", odd, RATE, "FLOAT")
    return folder


@pytest.fixture(scope="module")
def explained(folder):
    encoder = SpectrumEncoder()
    plain, _ = soundfile.read(folder / "plain.wav", dtype="float32")
    detector = DistanceDetector(embed_arrays([plain], encoder, RATE)[0])
    return explain(Model(detector, "x"), folder / "odd.wav", encoder), detector


def test_the_odd_segment_and_band_are_found(explained):
    result, _ = explained
    drops = [part.drop for part in result.muted_segments]
    assert np.argmax(drops) == 5
    odd_band = max(result.muted_bands, key=lambda band: band.drop)
    assert odd_band.low_hz < 11000 and odd_band.high_hz > 9000
    assert result.strongest.drop == max(*drops, odd_band.drop)
    assert 0 < result.to_dict()["strongest"]["fraction_of_score"] <= 1


def test_score_over_time_peaks_where_the_burst_is(explained):
    result, _ = explained
    worst = max(result.windows, key=lambda window: window.score)
    assert worst.start_s < 3.0 and worst.end_s > 2.5
    assert all(w.end_s - w.start_s >= 0.5 - 1e-6 for w in result.windows)
    assert result.windows[0].start_s == 0
    assert result.windows[-1].end_s == pytest.approx(4.0, abs=1e-3)
    worst_step = max(result.tokens, key=lambda token: token.score)
    assert 0 <= worst_step.time_s <= 4.0


def test_an_explanation_is_json(explained):
    result, _ = explained
    plain = result.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["windows"][0] == {
        "start_s": 0.0, "end_s": result.windows[0].end_s, "score": result.windows[0].score
    }  # fmt: skip
    assert plain["strongest"]["kind"] in ("band", "segment")
    assert result.samples.shape == (4 * RATE,)
    assert result.log_mel.shape[0] == 16  # bands


def test_neighbors_are_normal_and_not_the_file_itself(folder, explained):
    _, detector = explained
    encoder = SpectrumEncoder()
    base = detector.center
    far = base + 10
    matrix = np.stack([base, base * 1.01, far, base * 0.5]).astype(np.float32)
    own = hashlib.sha256((folder / "odd.wav").read_bytes()).hexdigest()
    table = pa.table(
        {"id": list("abcd"), "path": list("abcd"), "group": ["g"] * 4,
         "sha256": [own, "x", "y", "z"]}
    )  # fmt: skip
    known = Embeddings(matrix, table, {})
    result = explain(Model(detector, "x"), folder / "odd.wav", encoder, known)
    found = [row.id for row in result.neighbors]
    assert "a" not in found  # the file itself
    assert "c" not in found  # flagged by the detector
    assert found[0] == "b"


def test_short_silent_and_clipped_loops_are_flagged(tmp_path, explained):
    _, detector = explained
    soundfile.write(tmp_path / "short.wav", tone(seconds=0.1), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "hot.wav", np.sign(tone()), RATE, "FLOAT")
    flags = {
        name: explain(Model(detector, "x"), tmp_path / f"{name}.wav", SpectrumEncoder()).flags
        for name in ("short", "silent", "hot")
    }
    assert "too_short" in flags["short"]
    assert "silence" in flags["silent"]
    assert "clipped" in flags["hot"]


def test_a_very_short_loop_has_no_excerpts_but_an_explanation(tmp_path, explained):
    _, detector = explained
    soundfile.write(tmp_path / "one.wav", np.full(3, 0.5), RATE)
    result = explain(Model(detector, "x"), tmp_path / "one.wav", SpectrumEncoder())
    assert result.windows == ()
    assert len(result.muted_segments) == 3
    json.dumps(result.to_dict(), allow_nan=False)


def test_mistakes_are_user_errors(tmp_path, explained):
    _, detector = explained
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(UserError, match="cannot be decoded"):
        explain(Model(detector, "x"), tmp_path / "a.wav", SpectrumEncoder())
    detector = DistanceDetector(np.zeros(3))
    detector.n_features_in_ = 3
    with pytest.raises(UserError, match="scores 3 numbers"):
        explain(Model(detector, "x"), tmp_path / "a.wav", SpectrumEncoder())


def test_mute_segment_is_silent_inside_and_unchanged_outside():
    samples = np.ones(1000, np.float32)
    muted = mute_segment(samples, 400, 500, 20)
    assert (muted[400:500] == 0).all()
    assert (muted[:380] == 1).all() and (muted[520:] == 1).all()
    assert (np.diff(muted[380:400]) < 0).all() and (np.diff(muted[500:520]) > 0).all()
    assert (mute_segment(samples, 0, 1000, 20) == 0).all()


def test_mute_band_removes_only_its_band():
    low, high = tone(300), tone(5000)
    np.testing.assert_allclose(mute_band(low + high, RATE, 4000, 6000), low, atol=1e-3)


@pytest.mark.slow
def test_same_numbers_as_through_the_store(tmp_path):
    from loopjax.encoders.encoder import HtsatEncoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig

    config = HtsatConfig.nano(width=8, depths=(1, 1), heads=(1, 2), fusion=True)
    encoder = HtsatEncoder(config, LogMelConfig(), random_weights(config), encoder_id="x")
    rng = np.random.default_rng(0)
    path, rate = tmp_path / "a.wav", 44100  # resampled on the device
    soundfile.write(path, 0.2 * rng.normal(size=int(rate * 0.45)), rate, "PCM_16")
    matrix = embed(str(path), encoder).matrix
    samples, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_allclose(embed_arrays([samples], encoder, rate), matrix, atol=1e-5)
    detector = PCA(n_components=2).fit(rng.normal(size=(30, 16)).astype(np.float32))
    result = explain(Model(detector, "pca"), path, encoder)
    assert result.score == pytest.approx(detector.decision_function(matrix)[0], rel=1e-4)
    assert result.tokens


def test_embed_arrays_keeps_the_order_of_mixed_lengths():
    encoder = SpectrumEncoder()
    arrays = [tone(200 + 300 * k, seconds) for k, seconds in enumerate((3.0, 0.2, 3.5, 0.3, 9.0))]
    seen = []
    together = embed_arrays(arrays, encoder, RATE, batch_size=2, on_batch=seen.append)
    alone = np.concatenate([embed_arrays([array], encoder, RATE) for array in arrays])
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert seen[-1] == 5
