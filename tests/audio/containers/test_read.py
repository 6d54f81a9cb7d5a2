"""What is read of all headers, and that none, however broken, breaks the reader."""

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopjax.audio.containers.content import Content
from loopjax.audio.containers.read import read_streams
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.loop import DecodeError
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.files import scan
from tests.audio_files import pcm16, tone, wav_bytes

SECOND = tone(1.0, 44_100, channels=2)
EXTENSIONS = ("wav", "aiff", "flac", "ogg", "mp3", "au", "caf", "rf64")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """One good file of each container."""
    folder = tmp_path_factory.mktemp("whole")
    files = {}
    for extension in EXTENSIONS:
        path = folder / f"a.{extension}"
        kind = "RF64" if extension == "rf64" else None
        soundfile.write(path, SECOND, 44_100, format=kind)
        files[extension] = path.read_bytes()
    return files


def header_of(raw: bytes):
    (stream,) = read_streams(Content(io.BytesIO(raw), len(raw)))
    return stream


@pytest.mark.parametrize("extension", [e for e in EXTENSIONS if e != "ogg"])
def test_claims_are_read(whole, tmp_path, extension):
    header = header_of(whole[extension])
    assert header.rate_hz == 44_100
    assert header.channels == 2
    assert not header.truncated
    assert not header.flags
    if header.frames is not None:
        slack = 4 * 1152 if extension == "mp3" else 0
        assert 44_100 <= header.frames <= 44_100 + slack


@pytest.mark.parametrize("extension", ["wav", "aiff", "au", "caf", "rf64"])
def test_every_cut_inside_the_data_is_noticed(whole, tmp_path, extension):
    raw = whole[extension]
    for kept in (0.3, 0.6, 0.99):
        assert header_of(raw[: int(len(raw) * kept)]).truncated


def test_trailing_bytes_and_extra_chunks_are_fine(whole, tmp_path):
    raw = wav_bytes(pcm16(SECOND[:, 0]), rate_hz=44_100)
    extra = b"junk" + struct.pack("<I", 3) + b"abc\0"
    with_extra = raw[:12] + extra + raw[12:] + b"LIST" + struct.pack("<I", 4) + b"INFO"
    header = header_of(with_extra)
    assert (header.frames, header.flags, header.truncated) == (44_100, [], "")


def test_big_endian_wav(tmp_path):
    soundfile.write(tmp_path / "a.wav", SECOND, 44_100, endian="BIG")
    header = header_of((tmp_path / "a.wav").read_bytes())
    assert (header.channels, header.rate_hz) == (2, 44_100)


def test_id3_tag_before_mp3_frames(whole, tmp_path):
    tag = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)
    plain = header_of(whole["mp3"])
    assert header_of(tag + whole["mp3"]).frames == plain.frames


def test_endless_empty_chunks_end(tmp_path):
    raw = b"RIFF\xff\xff\xff\xffWAVE" + bytes(8) * 200_000
    with pytest.raises(DecodeError, match="no format and data chunk"):
        header_of(raw)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_header_breaks_the_reader(whole, tmp_path, data):
    raw = bytearray(whole[data.draw(st.sampled_from(EXTENSIONS))][:4096])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 127))
        raw[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        header = header_of(bytes(raw))
    except DecodeError as error:
        assert error.reason in ("unsupported_format", "bad_header")
    else:
        assert header.channels is None or 1 <= header.channels <= 1024
        assert header.rate_hz is None or np.isfinite(header.rate_hz)


@pytest.mark.slow
@pytest.mark.faults
def test_spoiled_files_of_every_kind_end_as_samples_or_a_reason(whole, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(240):
        extension = EXTENSIONS[i % len(EXTENSIONS)]
        raw = np.frombuffer(whole[extension], np.uint8).copy()
        limit = 200 if i % 2 else len(raw)
        places = rng.integers(0, limit, rng.integers(1, 30))
        raw[places] = rng.integers(0, 256, len(places))
        (tmp_path / f"{i:03d}.{extension}").write_bytes(raw.tobytes())
    process = DecoderProcess(DecodeOptions(max_duration_s=5.0), 20.0)
    outcomes = []
    for loop in scan([tmp_path]):
        try:
            reply = process.decode(loop)
            samples = np.empty(reply.n_samples, reply.dtype)
            reply.copy_to(samples)
            assert np.isfinite(samples).all()
            outcomes.append("samples")
        except DecodeError as error:
            outcomes.append(error.reason)
    process.close()
    assert len(outcomes) == 240
    assert 20 < outcomes.count("samples") < 240
