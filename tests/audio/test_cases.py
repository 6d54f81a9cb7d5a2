"""Files of kinds that once went wrong, with the values that independent tools gave."""

from pathlib import Path

import pytest

from loopjax.audio.decode import decode_file
from loopjax.audio.sources.files import scan
from tests.audio_bytes import ANY_RATE

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
AUDIO = CASES / "audio"
MPEG_44100 = 155 * 1152
# ffmpeg 5.1; for the chained Vorbis files the granule positions, and oggdec: ffmpeg plays 128
# samples at the joint that belong to neither link.
FRAMES = {
    "chained.ogg": 352_800,
    "bass_then_noise.ogg": 352_800,
    "chained.opus": 384_000,
    **dict.fromkeys(
        (
            "loud_first.mp3",
            "quiet_first.mp3",
            "loud_first_two_id3.mp3",
            "quiet_first_two_id3.mp3",
            "loud_first_zeros_after_id3.mp3",
        ),
        707_328,
    ),
    **{f"cbr/cbr{kbps}.mp3": MPEG_44100 for kbps in (64, 96, 128, 160, 192, 256, 320)},
    "cbr/ff_noxing.mp3": MPEG_44100,
    "cbr/cbr128_32k.mp3": 130_176,
    "cbr/cbr128_48k.mp3": 193_536,
    "cbr/cbr64_22k.mp3": 89_856,
    "silence_then_noise.mp3": MPEG_44100,
    "zero_zero.wav": 176_400,
    "p24_size_counts_pad.wav": 44_541,
    "p24_nopad.wav": 44_541,
    "odd_padded_before_fmt.wav": 176_400,
}
FLAGS = {
    "zero_zero.wav": ("size_mismatch",),
    **dict.fromkeys(("chained.ogg", "chained.opus", "bass_then_noise.ogg"), ("chained",)),
}

pytestmark = [
    pytest.mark.cases,
    pytest.mark.skipif(not AUDIO.exists(), reason="the shared cases are absent"),
]


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_is_decoded(name):
    info = decode_file(bytes(AUDIO / name), -1, 0, ANY_RATE).info
    assert (info.n_frames, info.flags) == (FRAMES[name], FLAGS.get(name, ()))


def test_every_file_of_the_folder_is_named_here():
    found = {str(p.relative_to(AUDIO)) for p in AUDIO.rglob("*.*") if p.is_file()}
    assert {name for name in found if not name.startswith("unlisted/")} == set(FRAMES)


def test_every_audio_file_of_a_folder_is_a_row():
    found = [Path(row.path).name for row in scan([AUDIO / "unlisted"])]
    assert sorted(found) == sorted(path.name for path in (AUDIO / "unlisted").iterdir())
