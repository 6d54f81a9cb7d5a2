"""Fault matrix rows 1 to 22: what lies inside a file."""

import numpy as np
import pytest

from tests.faults.conftest import assert_healthy_rows_equal

pytestmark = pytest.mark.faults

REJECTED = {
    1: {"empty.wav": "empty_file"},
    2: {
        "no_frames.wav": "no_samples",
        "only_riff.wav": "bad_header",
        "header_ends.au": "bad_header",
    },
    3: {"cut.wav": "truncated", "cut.aiff": "truncated"},
    5: {"cut.flac": "truncated"},
    6: {"cut.mp3": "truncated"},
    8: {"text.wav": "unsupported_format", "picture.flac": "unsupported_format"},
    9: dict.fromkeys(("mat5.wav", "xi.wav", "sds.wav"), "unsupported_format"),
    10: {f"channels_{n}.wav": "bad_header" for n in (0, 1025, 65535)},
    11: {"channels_1024.wav": "limit_channels"},
    12: {"rate_1.wav": "limit_rate"},
    13: {"rate_0.wav": "bad_header", "rate_4000000000.wav": "bad_header"},
    14: {f"{name}": "limit_duration" for name in ("thirty_minutes.flac", "thirty_minutes.ogg")},
    15: {"nan.wav": "non_finite", "inf.wav": "non_finite"},
}


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [(r, n, w) for r, files in REJECTED.items() for n, w in files.items()],
)
def test_rejected_with_a_reason(spoiled, row, name, reason):
    assert spoiled.reasons.get(name) == reason
    assert name not in spoiled.rows


def test_every_failure_is_expected(spoiled):
    expected = {name for files in REJECTED.values() for name in files}
    assert set(spoiled.reasons) == expected | {"unknown_length.flac"}
    assert all(f["message"] for f in spoiled.embeddings.failures.to_pylist())


def test_healthy_rows_do_not_notice(spoiled, forgiven, clean):
    assert_healthy_rows_equal(spoiled, clean)
    assert_healthy_rows_equal(forgiven, clean)


def test_row_3_truncated_files_can_be_accepted(forgiven):
    assert forgiven.rows["cut.wav"]["flags"] == ["truncated"]
    assert forgiven.rows["cut.wav"]["n_frames"] == (5000 - 44) // 2
    assert "truncated" in forgiven.rows["cut.mp3"]["flags"]
    assert forgiven.rows["cut.flac"]["flags"] == ["truncated"]


def test_row_6_an_mp3_without_a_length_header_is_whole(spoiled):
    row = spoiled.rows["no_length_header.mp3"]
    assert row["flags"] == []
    assert row["n_frames"] == 43 * 1152  # one second with the delay and padding


@pytest.mark.parametrize("name", ["huge_data_claim.wav", "streamed.wav"])
def test_row_4_wrong_size_claims_are_flagged(spoiled, name):
    assert spoiled.rows[name]["flags"] == ["size_mismatch"]
    assert spoiled.rows[name]["n_frames"] == 48_000


def test_row_7_cut_ogg_is_kept_with_a_flag(spoiled):
    row = spoiled.rows["cut.ogg"]
    assert row["flags"] == ["truncated"]
    assert 0 < row["n_frames"] < 4 * 48_000


def test_row_14_unknown_length_stops_at_the_limit(spoiled):
    assert spoiled.reasons["unknown_length.flac"] == "limit_duration"


def test_row_15_sanitize_zeroes_and_flags(forgiven):
    for name in ("nan.wav", "inf.wav"):
        assert "sanitized" in forgiven.rows[name]["flags"]
        assert np.isfinite(forgiven.vectors[name]).all()


def test_row_16_extreme_values(spoiled):
    assert "clipped" in spoiled.rows["huge.wav"]["flags"]
    assert "silence" in spoiled.rows["denormal.wav"]["flags"]
    assert np.isfinite(spoiled.vectors["huge.wav"]).all()
    assert np.isfinite(spoiled.vectors["denormal.wav"]).all()


def test_row_17_silence(spoiled):
    assert spoiled.rows["silent.wav"]["flags"] == ["silence"]
    assert np.isfinite(spoiled.vectors["silent.wav"]).all()


def test_row_18_dc_and_clipping(spoiled):
    assert spoiled.rows["dc.wav"]["flags"] == ["dc"]
    assert spoiled.rows["square.wav"]["flags"] == ["clipped"]


@pytest.mark.parametrize("n", [1, 7, 479_999, 480_000, 480_001, 480_479, 480_480])
def test_row_19_awkward_lengths(spoiled, n):
    assert spoiled.rows[f"samples_{n}.wav"]["n_frames"] == n
    assert np.isfinite(spoiled.vectors[f"samples_{n}.wav"]).all()


PLAIN = ["double.wav", "pcm_u8.wav", "ulaw.wav", "alaw.wav", "pcm_32.wav", "plain.aiff"]
FORMATS = dict.fromkeys(
    [*PLAIN, "plain.au", "plain.caf", "plain.rf64", "plain.opus"], (48_000, 1)
) | {
    "192k_24bit_32ch.wav": (19_200, 32),
    "ima_adpcm.wav": (48_480, 1),  # whole blocks: more frames than were written
    "ms_adpcm.wav": (48_000, 1),
    "odd_rate.wav": (37_800, 1),
}


@pytest.mark.parametrize("name", FORMATS)
def test_row_20_formats_decode(spoiled, name):
    frames, channels = FORMATS[name]
    row = spoiled.rows[name]
    assert row["channels"] == channels
    assert frames <= row["n_frames"] <= frames + (1024 if "adpcm" in name else 0)


def test_row_21_opposite_channels(spoiled):
    assert spoiled.rows["opposite.wav"]["flags"] == ["mono_cancels", "silence"]


def test_row_22_channel_layout_does_not_matter(spoiled):
    vectors = spoiled.vectors
    np.testing.assert_allclose(vectors["mono.wav"], vectors["dual_mono.wav"], atol=1e-6)
    np.testing.assert_allclose(vectors["left_right.wav"], vectors["right_left.wav"], atol=1e-6)
