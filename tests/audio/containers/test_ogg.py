"""Ogg: all links of a chain are read, and what is missing is said."""

import sys
from pathlib import Path

import numpy as np
import pytest

from loopjax.audio.loop import DecodeError
from tests.audio_bytes import decode_bytes, encoded, noise

pytestmark = pytest.mark.cases

DATA = Path(__file__).parents[1] / "data"
N = 40_000


def vorbis(n: int = N, channels: int = 1, rate_hz: int = 44_100, seed: int = 0) -> bytes:
    return encoded(noise(n, channels, seed), rate_hz, "OGG", "VORBIS")


def opus(n: int = 48_000, channels: int = 1) -> bytes:
    return encoded(noise(n, channels), 48_000, "OGG", "OPUS")


def pages(raw: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(raw):
        n_segments = raw[at + 26]
        end = at + 27 + n_segments + sum(raw[at + 27 : at + 27 + n_segments])
        found.append(raw[at:end])
        at = end
    return found


@pytest.mark.parametrize(
    "links",
    [
        [vorbis(), vorbis(30_000, seed=1)],
        [vorbis(), vorbis(500, seed=1), vorbis(seed=2), vorbis(30_000)],
        [opus(), opus(24_000)],
        [vorbis(), vorbis(channels=2)],
        [vorbis(rate_hz=48_000), opus(channels=2)],
    ],
    ids=["Vorbis", "four links, one tiny", "Opus", "mono and stereo", "Vorbis and Opus"],
)
def test_every_link_of_a_chain_is_decoded(tmp_path, links):
    alone = [decode_bytes(tmp_path, link).samples for link in links]
    decoded = decode_bytes(tmp_path, b"".join(links))
    np.testing.assert_array_equal(decoded.samples, np.concatenate(alone))
    assert decoded.info.flags == ("chained",)
    assert decoded.info.n_frames == sum(map(len, alone))


def test_links_of_different_rates_meet_at_the_highest(tmp_path):
    links = [vorbis(22_050, rate_hz=22_050), vorbis(44_100), vorbis(16_000, rate_hz=16_000)]
    decoded = decode_bytes(tmp_path, b"".join(links))
    assert (decoded.info.source_rate_hz, decoded.info.n_frames) == (44_100, 3 * 44_100)
    middle = decode_bytes(tmp_path, links[1]).samples
    np.testing.assert_array_equal(decoded.samples[44_100:88_200], middle)


def test_a_chain_is_as_long_as_all_its_links(tmp_path):
    chain = vorbis(30_000) * 4
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, chain, max_duration_s=2.0)
    assert caught.value.reason == "limit_duration"


def test_a_quiet_link_does_not_make_a_silent_file(tmp_path):
    quiet = encoded(np.zeros((N, 1), np.float32), 44_100, "OGG", "VORBIS")
    assert "silence" in decode_bytes(tmp_path, quiet + quiet).info.flags
    assert "silence" not in decode_bytes(tmp_path, quiet + vorbis()).info.flags


def test_cut_links_keep_their_whole_pages_with_a_flag(tmp_path):
    first, second = vorbis(), vorbis(seed=1)
    for chain in (first[:-2000] + second, first + second[:-2000]):
        decoded = decode_bytes(tmp_path, chain)
        assert decoded.info.flags == ("chained", "truncated")
        assert N < decoded.info.n_frames < 2 * N


def test_a_missing_page_is_flagged(tmp_path):
    parts = pages(vorbis(200_000))
    assert len(parts) > 6
    whole = decode_bytes(tmp_path, b"".join(parts))
    assert whole.info.flags == ()
    try:
        flags = decode_bytes(tmp_path, b"".join(parts[:4] + parts[5:])).info.flags
    except DecodeError as error:
        assert error.reason == "truncated"
    else:
        assert "gaps" in flags


@pytest.mark.parametrize(("name", "says"), [("ogg_flac.oga", "Ogg FLAC"), ("speex.spx", "Speex")])
def test_other_codecs_are_named(tmp_path, monkeypatch, name, says):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DecodeError, match=says) as caught:
        decode_bytes(tmp_path, (DATA / name).read_bytes())
    assert caught.value.reason == "unsupported_format"


def test_streams_that_play_at_the_same_time_are_refused(tmp_path):
    first, second = pages(vorbis()), pages(vorbis(seed=1))
    together = [first[0], second[0], *first[1:], *second[1:]]
    with pytest.raises(DecodeError, match="at a time"):
        decode_bytes(tmp_path, b"".join(together))
