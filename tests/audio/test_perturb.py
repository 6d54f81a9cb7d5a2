import numpy as np
import pytest

from loopjax.audio.perturb import PERTURBATIONS, perturb
from loopjax.errors import UserError

RATE = 32_000


def loop(hz=220.0, seconds=2.0):
    """Decaying notes on a beat, so that order and timing matter."""
    t = np.arange(int(seconds * RATE)) / RATE
    beat = np.exp(-6 * (t % 0.5))
    tone = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 12))
    return (0.2 * beat * tone).astype(np.float32)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def spectrum_distance(a, b):
    """Distance of log spectrograms: grows with a change in pitch, timing, timbre or level."""
    n = min(len(a), len(b)) // 1024 * 1024

    def picture(x):
        frames = x[:n].reshape(-1, 1024) * np.hanning(1024)
        return np.log1p(100 * np.abs(np.fft.rfft(frames)))

    return float(np.abs(picture(a) - picture(b)).mean())


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbation_is_deterministic_finite_and_in_place(name):
    perturbation, samples, donor = PERTURBATIONS[name], loop(), loop(900.0, 0.7)
    assert len(perturbation.severities) == 6
    for severity in perturbation.severities:
        first = perturb(perturbation, samples, RATE, severity, (1, 2), donor)
        again = perturb(perturbation, samples, RATE, severity, (1, 2), donor)
        np.testing.assert_array_equal(first, again)
        assert first.dtype == np.float32
        assert np.isfinite(first).all()
        assert 0 < len(first) <= len(samples)
        assert (len(first) < len(samples)) == (name == "time stretch")
        assert not np.array_equal(first, samples)
    np.testing.assert_array_equal(samples, loop())


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_more_severe_is_further_away(name):
    perturbation, samples, donor = PERTURBATIONS[name], loop(), loop(900.0, 0.7)
    distance = [
        np.mean(
            [
                spectrum_distance(perturb(perturbation, samples, RATE, s, (seed,), donor), samples)
                for seed in range(6)
            ]
        )
        for s in perturbation.severities
    ]
    assert distance[0] < distance[3] or name == "time stretch"
    assert distance[0] < max(distance[4:])
    assert np.corrcoef(np.arange(6), distance)[0, 1] > 0.5


def peak_hz(x):
    return np.argmax(np.abs(np.fft.rfft(x))) / len(x) * RATE


def test_pitch_shift_moves_by_the_given_cents():
    samples = loop(440.0)
    for cents in (100, 700):
        shifted = perturb(PERTURBATIONS["pitch shift"], samples, RATE, cents, (0,))
        moved = 1200 * np.log2(peak_hz(shifted) / 440.0)
        assert abs(moved) == pytest.approx(cents, abs=12)
        assert rms(shifted) == pytest.approx(rms(samples), rel=1e-3)


def test_time_stretch_shortens_and_keeps_the_pitch():
    samples = loop(440.0)
    fast = perturb(PERTURBATIONS["time stretch"], samples, RATE, 25, (0,))
    assert len(fast) == pytest.approx(len(samples) / 1.25, rel=0.01)
    assert peak_hz(fast) == pytest.approx(440.0, rel=0.02)


def test_noise_has_the_given_ratio():
    samples = loop()
    noise = perturb(PERTURBATIONS["noise"], samples, RATE, 20, (0,)) - samples
    assert 20 * np.log10(rms(samples) / rms(noise)) == pytest.approx(20, abs=0.2)


def test_drive_flattens_the_tops():
    samples = loop()
    driven = perturb(PERTURBATIONS["drive"], samples, RATE, 24, (0,))
    top = np.abs(driven).max()
    assert np.mean(np.abs(driven) > 0.999 * top) > 0.05
    assert rms(driven) == pytest.approx(rms(samples), rel=1e-3)


def test_low_pass_removes_what_lies_above():
    samples = loop(2000.0)
    dark = perturb(PERTURBATIONS["low-pass"], samples, RATE, 500, (0,))
    spectrum = np.abs(np.fft.rfft(dark)) ** 2
    hz = np.fft.rfftfreq(len(dark), 1 / RATE)
    assert spectrum[hz > 3900].sum() < 0.01 * spectrum.sum()


def test_gain_steps_lower_half_of_the_loop():
    ones = np.ones(RATE, np.float32)
    stepped = perturb(PERTURBATIONS["gain steps"], ones, RATE, 6, (0,))
    low = 10 ** (-6 / 20)
    assert np.mean(np.isclose(stepped, low, atol=1e-3)) == pytest.approx(0.5, abs=0.03)
    assert np.mean(np.isclose(stepped, 1.0, atol=1e-3)) == pytest.approx(0.5, abs=0.03)


def test_full_reversal_is_the_loop_backwards():
    samples = loop()
    np.testing.assert_allclose(
        perturb(PERTURBATIONS["reversal"], samples, RATE, 100, (0,)), samples[::-1], atol=1e-6
    )


def test_dropouts_silence_four_gaps_of_the_given_length():
    samples = np.ones(2 * RATE, np.float32)
    gaps = perturb(PERTURBATIONS["dropouts"], samples, RATE, 50, (0,)) == 0
    assert gaps.sum() == 4 * int(0.05 * RATE)
    assert np.sum(np.diff(gaps.astype(int)) == 1) == 4


def test_off_grid_slices_keep_their_sound_but_not_their_place():
    clicks = np.zeros(8 * 4000, np.float32)
    clicks[2000::4000] = 1.0  # in the middle of every slice
    moved = np.flatnonzero(perturb(PERTURBATIONS["off-grid slices"], clicks, RATE, 20, (3,)) > 0.5)
    shift = moved - np.arange(2000, len(clicks), 4000)
    assert len(moved) == 8
    assert ((np.abs(shift) >= 0.5 * 0.2 * 4000 - 1) & (np.abs(shift) <= 0.2 * 4000 + 1)).all()


def test_splice_is_the_donor_for_its_fraction_at_the_same_loudness():
    samples, donor = loop(220.0), 0.01 * loop(1500.0, 0.4)
    spliced = perturb(PERTURBATIONS["foreign splice"], samples, RATE, 50, (0,), donor)
    foreign = np.abs(spliced - samples) > 1e-4
    assert np.mean(foreign) == pytest.approx(0.5, abs=0.08)
    assert rms(spliced) == pytest.approx(rms(samples), rel=0.5)
    with pytest.raises(UserError, match="donor"):
        perturb(PERTURBATIONS["foreign splice"], samples, RATE, 50, (0,))


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("samples", [np.zeros(RATE // 2, np.float32), loop(seconds=0.06)])
def test_silence_and_very_short_loops_survive(name, samples):
    perturbation = PERTURBATIONS[name]
    for severity in perturbation.severities[::5]:
        perturbed = perturb(perturbation, samples, RATE, severity, (0,), loop(900.0, 0.7))
        assert np.isfinite(perturbed).all()
        assert len(perturbed) > 0
