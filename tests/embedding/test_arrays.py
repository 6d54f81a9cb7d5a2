"""Samples in memory are embedded as the WAV files that hold them."""

import numpy as np
import pytest
import soundfile

import loopjax
from loopjax.errors import UserError
from tests.fake_encoder import FakeEncoder

RATE_HZ = 44_100


def stereo(n=9000, seed=0):
    """int16 [n, 2], the channels of different sound."""
    return np.random.default_rng(seed).integers(-9000, 9000, (n, 2), dtype=np.int16)


def of_file(samples, tmp_path):
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    return loopjax.embed(tmp_path / "a.wav", FakeEncoder(), workers=1)


def test_an_array_is_what_its_file_is(tmp_path):
    samples = stereo()
    wanted = of_file(samples, tmp_path)
    by_sample = loopjax.embed(samples, FakeEncoder(), rate_hz=RATE_HZ, workers=1)
    np.testing.assert_array_equal(by_sample.matrix, wanted.matrix)
    row, expected = by_sample.table.to_pylist()[0], wanted.table.to_pylist()[0]
    assert row["path"] == "array-000000"
    for name in ("sample_rate_hz", "channels", "n_frames", "duration_s", "subtype", "sha256"):
        assert row[name] == expected[name], name


@pytest.mark.parametrize(
    "turned",
    [
        lambda s: np.ascontiguousarray(s.T),
        lambda s: s.T,
        lambda s: (s / 32768).astype(np.float32),
        lambda s: s.T / 32768,
    ],
    ids=["channels first", "a view", "float32", "float64, channels first"],
)
def test_layout_and_type_do_not_matter(turned, tmp_path):
    wanted = of_file(stereo(), tmp_path).matrix
    found = loopjax.embed(turned(stereo()), FakeEncoder(), rate_hz=RATE_HZ, workers=1)
    np.testing.assert_allclose(found.matrix, wanted, rtol=1e-5, atol=1e-6)


def test_several_arrays_keep_their_order_and_a_bad_one_is_a_row_with_a_reason(tmp_path):
    arrays = [stereo(5000 + 3000 * i, seed=i)[:, 0] for i in range(12)]
    arrays.insert(4, np.full(5000, np.nan, np.float32))
    arrays.append(arrays[2])
    found = loopjax.embed(arrays, FakeEncoder(), rate_hz=RATE_HZ, workers=1)
    assert found.table["path"].to_pylist() == [f"array-{i:06d}" for i in range(14) if i != 4]
    (failure,) = found.failures.to_pylist()
    assert (failure["path"], failure["reason"]) == ("array-000004", "non_finite")
    np.testing.assert_array_equal(found.matrix[-1], found.matrix[2])
    np.testing.assert_array_equal(
        found.matrix[5], loopjax.embed(arrays[6], FakeEncoder(), rate_hz=RATE_HZ).matrix[0]
    )


def test_an_encoder_by_name():
    found = loopjax.embed(stereo(), "log-mel-statistics", rate_hz=RATE_HZ, workers=1)
    assert found.metadata["encoder"] == "log-mel-statistics"


def test_a_column_of_text_is_a_list_of_paths(tmp_path):
    pandas = pytest.importorskip("pandas")
    wanted = of_file(stereo(), tmp_path).matrix
    for paths in (pandas.Series([str(tmp_path / "a.wav")]), np.array([str(tmp_path / "a.wav")])):
        found = loopjax.embed(paths, FakeEncoder(), workers=1)
        np.testing.assert_array_equal(found.matrix, wanted)


@pytest.mark.parametrize(
    ("sources", "rate_hz", "words"),
    [
        (np.zeros(900), None, "rate_hz=44100"),
        (np.zeros(900), 44.1, "whole number"),
        (np.zeros(900), 0, "whole number"),
        ("a.wav", RATE_HZ, "files know theirs"),
        (["a.wav", np.zeros(900)], RATE_HZ, "separately"),
        ([0.0, 0.1], RATE_HZ, r"sources\[0\] is a float: expected a path, or samples"),
        (None, None, "sources is None: expected paths"),
        (np.zeros((2, 3, 900)), RATE_HZ, r"array 0 of shape \(2, 3, 900\).*list of arrays"),
        (np.zeros((900, 900)), RATE_HZ, "shorter axis"),
        ([np.zeros(900), np.zeros(900, np.uint8)], RATE_HZ, "array 1 .*uint8.*int16"),
        (np.array(3.0), RATE_HZ, "expected one loop"),
        (np.zeros(0), RATE_HZ, "holds no audio frames"),
    ],
)
def test_what_was_expected_is_said(sources, rate_hz, words):
    with pytest.raises(UserError, match=words):
        loopjax.embed(sources, FakeEncoder(), rate_hz=rate_hz, workers=1)


@pytest.mark.parametrize("encoder", [None, 7, np.zeros(3)])
def test_no_encoder_at_all(encoder):
    with pytest.raises(UserError, match="expected a name such as 'loopjax-nano'"):
        loopjax.embed(np.zeros(900), encoder, rate_hz=RATE_HZ)
