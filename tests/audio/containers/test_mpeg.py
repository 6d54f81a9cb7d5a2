"""MPEG audio: every frame is decoded, whatever the file says or does not say about their number."""

import struct
from pathlib import Path

import numpy as np
import pytest

from loopjax.audio.loop import DecodeError
from tests.audio_bytes import ID3V1, ape, decode_bytes, id3, mp3, noise, without_length

pytestmark = pytest.mark.cases

DATA = Path(__file__).parents[1] / "data"
RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
ENCODER_AND_DECODER_DELAY = 576 + 529  # LAME's and the codec's, cut off where a header says so
N = 30_000
FALSE_FRAMES = b"\xff\xfb\x90\x00" * 200  # what a picture in a tag may look like


def frames(raw: bytes, rate_hz: int) -> int:
    """Length of a stream of whole frames without a length header."""
    samples = 1152 if rate_hz >= 32_000 else 576
    return -(-(N + ENCODER_AND_DECODER_DELAY) // samples) * samples


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_gapless_files_have_the_length_they_were_made_with(tmp_path, rate_hz, mode, channels):
    decoded = decode_bytes(tmp_path, mp3(noise(N, channels), rate_hz, mode))
    assert decoded.info.n_frames == N
    assert decoded.info.flags == ()


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_without_a_length_header_every_frame_is_decoded(tmp_path, rate_hz, mode):
    raw = mp3(noise(N), rate_hz, mode)
    gapless = decode_bytes(tmp_path, raw).samples
    decoded = decode_bytes(tmp_path, without_length(raw))
    assert decoded.info.flags == ()
    assert decoded.info.n_frames % 576 == 0
    assert decoded.info.n_frames >= frames(raw, rate_hz)
    inner = decoded.samples[ENCODER_AND_DECODER_DELAY:][:N]
    np.testing.assert_allclose(inner, gapless, atol=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_the_first_frame_says_nothing_about_the_others(tmp_path, order):
    """Silence makes small frames and noise large ones: a length guessed from one is far off."""
    wave = np.concatenate([noise(N) * 1e-5, noise(N)][::order])
    raw = mp3(wave)
    decoded = decode_bytes(tmp_path, without_length(raw))
    inner = decoded.samples[ENCODER_AND_DECODER_DELAY:][: 2 * N]
    np.testing.assert_allclose(inner, decode_bytes(tmp_path, raw).samples, atol=1e-6)
    assert decoded.info.flags == ()


BARE = without_length(mp3(noise(N)))
OTHER = without_length(mp3(noise(20_000, seed=1)))
TAGGED = {
    "two ID3 tags": id3(bytes(300)) + id3(FALSE_FRAMES) + BARE,
    "padding behind ID3": id3(b"title") + bytes(5000) + BARE,
    "zeros in front": bytes(5000) + BARE,
    "ID3v1": BARE + ID3V1,
    "APE in front": ape(FALSE_FRAMES) + BARE,
    "APE and ID3v1 behind": BARE + ape(b"items" * 10) + ID3V1,
    "junk behind": BARE + b"junk " * 100,
    "an ID3 tag that is longer than it says": id3(b"") + FALSE_FRAMES[1:] + BARE,
}


@pytest.mark.parametrize("name", TAGGED)
def test_tags_and_padding_change_nothing(tmp_path, name):
    decoded = decode_bytes(tmp_path, TAGGED[name])
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, BARE).samples)
    assert decoded.info.flags == ()


@pytest.mark.parametrize("between", [b"", ID3V1 + id3(FALSE_FRAMES), bytes(999), b"junk" * 99])
def test_streams_without_headers_go_on_behind_tags_and_junk(tmp_path, between):
    decoded = decode_bytes(tmp_path, BARE + between + OTHER)
    alone = [decode_bytes(tmp_path, raw).info.n_frames for raw in (BARE, OTHER)]
    assert decoded.info.n_frames == sum(alone)
    assert decoded.info.flags == ()


@pytest.mark.parametrize("between", [b"", ID3V1 + id3(FALSE_FRAMES)])
def test_joined_gapless_files_stay_gapless(tmp_path, between):
    parts = [mp3(noise(N)), mp3(noise(20_000, seed=1), mode="CONSTANT"), mp3(noise(9000, 2))]
    decoded = decode_bytes(tmp_path, between.join(parts))
    alone = [decode_bytes(tmp_path, part).samples for part in parts]
    np.testing.assert_array_equal(decoded.samples, np.concatenate(alone))
    assert decoded.info.flags == ("chained",)
    assert decoded.info.channels == 2


def test_joined_streams_of_different_rates_meet_at_the_higher_one(tmp_path):
    parts = [mp3(noise(24_000), 24_000), mp3(noise(48_000), 48_000)]
    decoded = decode_bytes(tmp_path, b"".join(parts))
    assert (decoded.info.source_rate_hz, decoded.info.n_frames) == (48_000, 96_000)
    with pytest.raises(DecodeError, match="different rates"):
        decode_bytes(tmp_path, b"".join(parts), host_resampling=False)


def length_header(raw: bytes, count: int | None) -> bytes:
    """The file with another number of frames in its length header, or without that field."""
    mark = raw.find(b"Info") if b"Info" in raw[:200] else raw.find(b"Xing")
    (flags,) = struct.unpack(">I", raw[mark + 4 : mark + 8])
    assert flags == 15
    if count is not None:
        return raw[: mark + 8] + struct.pack(">I", count) + raw[mark + 12 :]
    rest = raw[mark + 12 : mark + 156]
    return raw[: mark + 4] + struct.pack(">I", 14) + rest + bytes(4) + raw[mark + 156 :]


def declared(raw: bytes) -> int:
    mark = raw.find(b"Info") if b"Info" in raw[:200] else raw.find(b"Xing")
    return struct.unpack(">I", raw[mark + 8 : mark + 12])[0]


def test_length_headers_that_are_wrong_about_what_is_there(tmp_path):
    raw = mp3(noise(N))
    count, right = declared(raw), decode_bytes(tmp_path, raw).samples
    for silent_or_itself in (None, 0, count + 1):  # no number, or the header counted as a frame
        decoded = decode_bytes(tmp_path, length_header(raw, silent_or_itself))
        np.testing.assert_array_equal(decoded.samples, right)
        assert decoded.info.flags == ()
    more = decode_bytes(tmp_path, length_header(raw, count - 5))
    np.testing.assert_array_equal(more.samples[:N], right)
    assert more.info.flags == ("size_mismatch",)
    assert N <= more.info.n_frames < N + 1152 + 1152
    whole = length_header(raw, count + 9)  # all bytes are there that the header counts
    decoded = decode_bytes(tmp_path, whole)
    np.testing.assert_array_equal(decoded.samples, right)
    assert decoded.info.flags == ("size_mismatch",)
    mark = whole.find(b"Xing") + 12
    more_bytes = whole[:mark] + struct.pack(">I", len(raw) + 9000) + whole[mark + 4 :]
    with pytest.raises(DecodeError, match=f"{count} of {count + 9} MPEG frames") as caught:
        decode_bytes(tmp_path, more_bytes)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("junk", [b"no sound 0123456" * 25, b"\xff\xfbno sound" * 3000])
def test_junk_in_front_is_no_part_of_the_sound(tmp_path, junk):
    raw = mp3(noise(N))
    decoded = decode_bytes(tmp_path, junk + raw)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, raw).samples)
    assert decoded.info.flags == ()  # it begins with its length header: nothing is cut off


@pytest.mark.parametrize("head", [b"\0\0\1\xba", b"RIFF\0\0\0\0AVI ", b"FLV\1", b"anything"])
def test_pieces_of_sound_in_a_film_are_no_stream(tmp_path, head):
    packets = [BARE[at : at + 2000] for at in range(0, len(BARE), 2000)]
    film = head + b"".join(bytes([1]) * 3000 + packet for packet in packets)
    with pytest.raises(DecodeError) as caught:
        decode_bytes(tmp_path, film)
    assert caught.value.reason == "unsupported_format"


@pytest.mark.parametrize("extra", [0, 1, 20])
def test_a_vbri_header_is_no_sound(tmp_path, extra):
    count = decode_bytes(tmp_path, BARE).info.n_frames // 1152
    head = bytes([BARE[0], BARE[1], 0x90 | BARE[2] & 0x0D, BARE[3]])
    more = 0 if extra <= 1 else 9000
    numbers = struct.pack(">HHHII", 1, 0, 75, len(BARE) + more, count + extra)
    frame = (head + bytes(32) + b"VBRI" + numbers).ljust(144 * 128_000 // 44_100, b"\0")
    if extra > 1:
        with pytest.raises(DecodeError, match=f"{count} of {count + extra}"):
            decode_bytes(tmp_path, frame + BARE)
        return
    decoded = decode_bytes(tmp_path, frame + BARE)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, BARE).samples)


@pytest.mark.parametrize(
    ("name", "n_frames"),  # as ffmpeg 5.1 counts; free format as LAME 3.100 does
    [
        ("layer2_44100.mp2", 11_520),
        ("layer2_24000.mp2", 6912),
        ("mpeg25_11025.mp3", 6912),
        ("free_format.mp3", 12_672),
    ],
)
def test_other_layers_versions_and_free_format(tmp_path, name, n_frames):
    decoded = decode_bytes(tmp_path, (DATA / name).read_bytes())
    assert decoded.info.n_frames == n_frames
    assert decoded.info.flags == ()


@pytest.mark.parametrize("has_header", [True, False])
def test_mp3_inside_wav(tmp_path, has_header):
    body = mp3(noise(N)) if has_header else BARE
    fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 44_100, 16_000, 1, 0, 12, 1, 2, 1152, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt
    chunks += b"data" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    decoded = decode_bytes(tmp_path, b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    np.testing.assert_array_equal(decoded.samples, decode_bytes(tmp_path, body).samples)
    assert decoded.info.flags == ()


def test_streams_cut_anywhere_keep_their_whole_frames_with_a_flag(tmp_path):
    whole = decode_bytes(tmp_path, BARE).info.n_frames
    behind = decode_bytes(tmp_path, BARE[:-100])
    assert (behind.info.n_frames, behind.info.flags) == (whole - 1152, ("truncated",))
    front = decode_bytes(tmp_path, BARE[100:])
    assert (front.info.n_frames, front.info.flags) == (whole - 1152, ("truncated",))


def test_a_cut_file_with_a_length_header_is_rejected_unless_accepted(tmp_path):
    raw = mp3(noise(N))
    with pytest.raises(DecodeError, match="MPEG frames are there"):
        decode_bytes(tmp_path, raw[: len(raw) // 2])
    kept = decode_bytes(tmp_path, raw[: len(raw) // 2], accept_truncated=True)
    assert kept.info.flags == ("truncated",)
    right = decode_bytes(tmp_path, raw).samples
    np.testing.assert_array_equal(kept.samples[:9000], right[:9000])


def test_many_false_starts_do_not_take_long(tmp_path):
    decoded = decode_bytes(tmp_path, id3(b"") + b"\xff" * 300_000 + BARE)
    assert decoded.info.n_frames == decode_bytes(tmp_path, BARE).info.n_frames
