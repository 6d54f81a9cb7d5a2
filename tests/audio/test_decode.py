"""Samples, mono policies, flags and host resampling of files that are fine."""

import hashlib
import os

import numpy as np
import pytest
import soundfile

from loopjax.audio.containers.sniff import sniff
from loopjax.audio.decode import DecodeOptions, decode_array, decode_file, resample_on_host
from loopjax.audio.loop import DecodeError
from tests.audio_files import tone, write_tone

ALL_RATES = (22_050, 44_100, 48_000, 96_000)


def decode(path, **options):
    options = DecodeOptions(**({"device_rates_hz": ALL_RATES} | options))
    return decode_file(os.fsencode(path), -1, 0, options)


def test_mono_16_bit_stays_int16_and_exact(tmp_path):
    values = np.array([0, 1, -1, 32767, -32768, 12345], np.int16)
    soundfile.write(tmp_path / "a.wav", values, 44_100)
    decoded = decode(tmp_path / "a.wav")
    assert decoded.samples.dtype == np.int16
    np.testing.assert_array_equal(decoded.samples, values)
    info = decoded.info
    assert (info.rate_hz, info.source_rate_hz, info.n_frames) == (44_100, 44_100, 6)
    assert info.sha256 == hashlib.sha256((tmp_path / "a.wav").read_bytes()).hexdigest()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_stereo_is_the_exact_mean_of_float_samples(tmp_path, subtype):
    stereo = np.random.default_rng(0).uniform(-1, 1, (5000, 2))
    soundfile.write(tmp_path / "a.wav", stereo, 48_000, subtype=subtype)
    expected = soundfile.read(tmp_path / "a.wav", dtype="float32")[0].mean(axis=1)
    decoded = decode(tmp_path / "a.wav")
    assert decoded.samples.dtype == np.float32
    np.testing.assert_array_equal(decoded.samples, expected)


def test_mono_policies(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 4)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 48_000, subtype="FLOAT")
    for policy, expected in (
        ("mean", wave.mean(axis=1)),
        ("left", wave[:, 0]),
        ("mid", wave[:, :2].mean(axis=1)),
    ):
        mixed = decode(tmp_path / "a.wav", mono=policy).samples
        np.testing.assert_allclose(mixed, expected, atol=1e-7)


def test_long_files_cross_block_borders(tmp_path, monkeypatch):
    monkeypatch.setattr("loopjax.audio.decode.BLOCK_SAMPLES", 1000)
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (7001, 3)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 48_000, subtype="FLOAT")
    np.testing.assert_allclose(decode(tmp_path / "a.wav").samples, wave.mean(axis=1), atol=1e-7)


def test_other_rates_are_resampled_on_the_host(tmp_path):
    write_tone(tmp_path / "a.wav", 0.5, 37_800)
    decoded = decode(tmp_path / "a.wav")
    assert (decoded.info.rate_hz, decoded.info.source_rate_hz) == (48_000, 37_800)
    assert decoded.samples.size == 24_000
    with pytest.raises(DecodeError, match="37800 Hz"):
        decode(tmp_path / "a.wav", host_resampling=False)


@pytest.mark.parametrize(
    ("n", "rate_hz", "expected"),
    [(13_230, 44_100, 14_401), (330_750, 44_100, 360_001), (1_014_300, 44_100, 1_104_000)],
)
def test_host_resampling_follows_librosas_length(n, rate_hz, expected):
    out = resample_on_host(np.zeros(n, np.float32), rate_hz, 48_000)
    assert out.size == expected
    assert out.dtype == np.float32


def test_host_resampling_keeps_the_sound():
    t = np.arange(44_100) / 44_100
    out = resample_on_host(np.sin(2 * np.pi * 440 * t).astype(np.float32), 44_100, 48_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    np.testing.assert_allclose(out[500:47_500], expected[500:47_500], atol=1e-4)


def test_arrays_are_treated_like_files(tmp_path):
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, (900, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 48_000, subtype="FLOAT")
    options = DecodeOptions(device_rates_hz=ALL_RATES)
    from_array = decode_array(wave, 48_000, options)
    np.testing.assert_array_equal(from_array.samples, decode(tmp_path / "a.wav").samples)
    with pytest.raises(DecodeError, match="NaN"):
        decode_array(np.array([np.nan, 0.0]), 48_000, options)
    with pytest.raises(DecodeError, match="no audio frames"):
        decode_array(np.zeros(0), 48_000, options)


LOUD_AND_QUIET = {  # type: values, and what fraction of full scale they are
    "int8": ([64, -128, 1], [0.5, -1.0, 2**-7]),
    "uint8": ([192, 0, 129], [0.5, -1.0, 2**-7]),
    "uint16": ([49_152, 0, 32_769], [0.5, -1.0, 2**-15]),
    "int16": ([16_384, -32_768, 1], [0.5, -1.0, 2**-15]),
    "int32": ([2**30, -(2**31), 100], [0.5, -1.0, 100 * 2**-31]),
    "uint32": ([3 * 2**30, 0, 2**31 + 512], [0.5, -1.0, 2**-22]),
    "int64": ([16_384, -32_768, 1], [0.5, -1.0, 2**-15]),
    "float64": ([0.5, -1.0, 1e-3], [0.5, -1.0, 1e-3]),
}


@pytest.mark.parametrize("dtype", LOUD_AND_QUIET)
def test_integers_are_scaled_by_their_type_alone(dtype):
    values, expected = LOUD_AND_QUIET[dtype]
    for chosen in ([0, 1, 2], [2]):  # with its loud neighbors, and quiet alone
        array = np.array([values[i] for i in chosen], dtype)
        samples = decode_array(array, 48_000, DecodeOptions()).samples
        if samples.dtype == np.int16:
            samples = samples / 32_768
        np.testing.assert_allclose(samples, [expected[i] for i in chosen], rtol=1e-6)


def test_arrays_whose_scale_or_shape_says_nothing_are_rejected():
    for array, reason in (
        (np.array([40_000, 0], np.int64), "unknown_scale"),
        (np.array([2**63], np.uint64), "unknown_scale"),
        (np.zeros((2, 2, 2), np.float32), "bad_header"),
        (np.zeros((), np.float32), "bad_header"),
        (np.array([True]), "bad_header"),
        (np.array([1j]), "bad_header"),
    ):
        with pytest.raises(DecodeError) as caught:
            decode_array(array, 48_000, DecodeOptions())
        assert caught.value.reason == reason


def test_arrays_given_by_the_caller_are_not_changed():
    values = np.array([0.1, np.nan, 1e30])
    kept = values.copy()
    decode_array(values, 48_000, DecodeOptions(sanitize=True))
    np.testing.assert_array_equal(values, kept)


def test_normalized_loops_are_not_called_clipped(tmp_path):
    wave = tone(0.5)[:, 0]
    soundfile.write(tmp_path / "a.wav", wave / np.abs(wave).max(), 48_000)
    assert decode(tmp_path / "a.wav").info.flags == ()


def test_most_negative_sample_counts_as_loud(tmp_path):
    values = np.zeros(1000, np.int16)
    values[500] = -32768
    soundfile.write(tmp_path / "a.wav", values, 48_000)
    assert "silence" not in decode(tmp_path / "a.wav").info.flags


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"RIFF\0\0\0\0WAVE", "wav"),
        (b"RIFX\0\0\0\0WAVE", "wav"),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"FORM\0\0\0\0AIFC", "aiff"),
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (b"ID3\x04", "mp3"),
        (b"\xff\xfb\x90\x00", "mp3"),
        (b"\xff\xff\xff\xff", None),
        (b"MATLAB 5.0", None),
        (b"", None),
    ],
)
def test_sniffing(head, kind):
    assert sniff(head) == kind
