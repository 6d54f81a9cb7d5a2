import io
import os

import numpy as np
import pytest
import soundfile

from loopjax.audio import preview
from loopjax.audio.loop import DecodeError

RATE = preview.PREVIEW_RATE_HZ


def tone(hz, seconds, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


def test_preview_has_the_length_and_pitch_of_the_file(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(1000, 1.5, 44100)] * 2, 1), 44100)
    sound = preview.read_preview(os.fsencode(path))
    assert sound.duration_s == pytest.approx(1.5)
    assert not sound.is_cut
    assert len(sound.samples) == pytest.approx(1.5 * RATE, abs=2)
    spectrum = np.abs(np.fft.rfft(sound.samples))
    assert np.argmax(spectrum) / len(sound.samples) * RATE == pytest.approx(1000, abs=2)


def test_long_files_are_cut(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(200, preview.MAX_PREVIEW_S + 2), RATE)
    sound = preview.read_preview(os.fsencode(path))
    assert sound.is_cut
    assert len(sound.samples) == preview.MAX_PREVIEW_S * RATE
    assert sound.duration_s == pytest.approx(preview.MAX_PREVIEW_S + 2)


def test_unreadable_file_carries_its_reason(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    with pytest.raises(DecodeError):
        preview.read_preview(os.fsencode(path))


@pytest.mark.parametrize("n_samples", [1, 31, RATE - 1, int(3.3 * RATE)])
def test_encoded_audio_keeps_its_exact_length(n_samples):
    samples = tone(300, 4)[:n_samples].astype(np.float32)
    clip = preview.encode_audio(samples)
    assert clip.mime_type in ("audio/mpeg", "audio/ogg")
    decoded, rate = soundfile.read(io.BytesIO(clip.data))
    assert rate == RATE
    assert len(decoded) == n_samples
    if n_samples > RATE:
        assert np.corrcoef(decoded, samples)[0, 1] > 0.99


def test_outline_holds_the_extremes_and_clips():
    samples = np.zeros(1000, np.float32)
    samples[250], samples[990] = 3.0, -0.5
    pairs = preview.outline(samples, 10)
    assert pairs.shape == (10, 2)
    assert pairs[2].tolist() == [0.0, 1.0]
    assert pairs[9].tolist() == [-0.5, 0.0]
    assert preview.outline(samples[:3], 10).shape == (10, 2)
