"""Standard MIDI files with one tick per sample, and FluidSynth to render them fast."""

import signal
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 48000
# FluidSynth starts notes on 64-sample blocks and counts time in whole milliseconds: segments
# start on multiples of both and events lie on half milliseconds, away from rounding, so that a
# segment sounds the same wherever it lies (but for the first 64 samples of a note).
_ALIGN_SAMPLES = 192
_MS = 48
SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
BEND_RANGE_SEMITONES = 12
_TICKS_PER_QUARTER = 24000
_MICROSECONDS_PER_QUARTER = 500_000
_GAP_SAMPLES = 20 * _ALIGN_SAMPLES
_SLACK_BYTES = 2**28  # FluidSynth also maps shared memory, which the limit counts

Event = tuple[int, bytes]


def note_on(channel: int, pitch: int, velocity: int) -> bytes:
    """Return a note-on message."""
    return bytes((0x90 | channel, pitch, velocity))


def note_off(channel: int, pitch: int) -> bytes:
    """Return a note-off message."""
    return bytes((0x80 | channel, pitch, 0))


def control(channel: int, number: int, value: int) -> bytes:
    """Return a control-change message."""
    return bytes((0xB0 | channel, number, value))


def bend(channel: int, cents: float) -> bytes:
    """Return a pitch-bend message; the range is +-BEND_RANGE_SEMITONES."""
    value = 8192 + round(cents / (100 * BEND_RANGE_SEMITONES) * 8192)
    value = min(max(value, 0), 16383)
    return bytes((0xE0 | channel, value & 0x7F, value >> 7))


def setup(channel: int, program: int) -> list[bytes]:
    """Return the messages that put a channel into a known state with a program."""
    return [
        control(channel, 120, 0),
        control(channel, 121, 0),
        control(channel, 101, 0),
        control(channel, 100, 0),
        control(channel, 6, BEND_RANGE_SEMITONES),
        control(channel, 7, 110),
        control(channel, 10, 64),
        bend(channel, 0.0),
        bytes((0xC0 | channel, program)),
    ]


def _variable_length(value: int) -> bytes:
    out = bytearray((value & 0x7F,))
    while value := value >> 7:
        out.insert(0, (value & 0x7F) | 0x80)
    return bytes(out)


def midi_file(events: list[Event]) -> bytes:
    """Return a format-0 Standard MIDI File; event times are in samples at 48 kHz.

    Raises:
        ValueError: the events are not sorted by time.
    """
    track = bytearray(b"\x00\xff\x51\x03" + _MICROSECONDS_PER_QUARTER.to_bytes(3, "big"))
    now = 0
    for tick, message in events:
        if tick < now:
            raise ValueError(f"event at sample {tick} comes after one at {now}")
        track += _variable_length(tick - now) + message
        now = tick
    track += b"\x00\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS_PER_QUARTER)
    return header + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def render_segments(
    segments: list[tuple[list[Event], int]], soundfont: Path = SOUNDFONT
) -> list[NDArray[np.float32]]:
    """Render many (events, length_samples) in one FluidSynth run; mono float32, not normalized.

    Events of a segment start at sample 0. What a segment sounds like does not depend on its
    neighbors: they are stopped before it starts.

    Raises:
        RuntimeError: FluidSynth failed or wrote too little.
    """
    timeline: list[Event] = []
    starts, cursor = [], _ALIGN_SAMPLES
    silence = [control(channel, 120, 0) for channel in range(16)]
    for events, length_samples in segments:
        starts.append(cursor)
        timeline += [(cursor + tick // _MS * _MS + _MS // 2, message) for tick, message in events]
        end = cursor + length_samples
        timeline += [(end + _MS, message) for message in silence]
        cursor = -(-(end + _GAP_SAMPLES) // _ALIGN_SAMPLES) * _ALIGN_SAMPLES
    timeline.append((cursor + _ALIGN_SAMPLES, silence[0]))
    with tempfile.TemporaryDirectory() as folder:
        score, raw = Path(folder, "score.mid"), Path(folder, "audio.raw")
        score.write_bytes(midi_file(timeline))
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-g", "0.5"]
        command += ["-r", str(SAMPLE_RATE_HZ), "-T", "raw", "-O", "float", "-z", "8192"]
        command += ["-o", "synth.polyphony=96"]
        # FluidSynth 2.3 sometimes misses the end of a score and would write until the disk is full.
        limit = ["prlimit", f"--fsize={8 * cursor + _SLACK_BYTES}"]
        done = subprocess.run(
            [*limit, *command, "-F", str(raw), str(soundfont), str(score)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, -signal.SIGXFSZ) or not raw.exists():
            raise RuntimeError(f"fluidsynth failed ({done.returncode}): {done.stderr[-500:]}")
        stereo = np.fromfile(raw, dtype=np.float32, count=2 * cursor).reshape(-1, 2)
    if len(stereo) < cursor:
        raise RuntimeError(f"fluidsynth wrote {len(stereo)} frames, {cursor} expected")
    return [
        stereo[start : start + length].mean(axis=1, dtype=np.float32)
        for start, (_, length) in zip(starts, segments, strict=True)
    ]
