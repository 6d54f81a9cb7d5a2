"""From plans to finished loops: notes -> MIDI events -> FluidSynth -> effects -> int16."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .effects import Samples, apply_effects, degrade, normalize_peak, rms
from .harmony import Note, fold, make_setting
from .midi import SAMPLE_RATE_HZ, Event, bend, note_off, note_on, render_segments, setup
from .patterns import PATTERNS
from .plans import DEGRADATIONS, ONE_SHOTS, SCORE_DEGRADATIONS, LoopPlan
from .programs import playing_range, program_name

_GATES = {"normal": 0.9, "staccato": 0.4, "legato": 1.04, "muted": 0.22}
_DRUM_CHANNEL, _INTRUDER_CHANNEL = 9, 8
_DETUNE_CHANNELS = (1, 2, 3, 4, 5, 6)
_SILENT_RMS = 1e-4


@dataclass(frozen=True)
class RenderedLoop:
    """A finished loop: int16 mono at 48 kHz and what was done to it."""

    plan: LoopPlan
    samples: NDArray[np.int16]
    detail: str


def write_notes(plan: LoopPlan) -> list[Note]:
    """Compose the notes of a plan."""
    rng = plan.rng("notes")
    low, high = playing_range(plan.family, plan.program)
    mode = "major" if plan.mode == "none" else plan.mode
    setting = make_setting(plan.key, mode, plan.bars, plan.beats_per_bar, low, high, rng)
    return PATTERNS[plan.pattern](setting, rng)


def _swung(start: float, swing: float) -> float:
    """Delay off-beat eighths towards the triplet (swing 1) and bend the sixteenths with them."""
    beat, within = divmod(start, 1.0)
    if abs(within - 1 / 3) < 0.01 or abs(within - 2 / 3) < 0.01:
        return start  # already a triplet
    middle = 0.5 + swing / 6
    warped = within / 0.5 * middle if within < 0.5 else middle + (within - 0.5) / 0.5 * (1 - middle)
    return beat + warped


def perform(plan: LoopPlan, notes: list[Note]) -> list[Event]:
    """Play notes as MIDI events with the plan's timing, touch and score-level degradation."""
    rng = plan.rng("perform")
    length_samples = round(plan.duration_s * SAMPLE_RATE_HZ)
    main = _DRUM_CHANNEL if plan.family == "drums" else 0
    channels = [main, *_DETUNE_CHANNELS] if plan.degradation == "detuned" else [main]
    events = [(0, message) for channel in channels for message in setup(channel, plan.program)]
    if plan.intruder is not None:
        events += [(0, message) for message in setup(_INTRUDER_CHANNEL, plan.intruder[1])]
    moments = sorted({n.start for n in notes})
    # Notes of one moment (a chord, a drum stack) move together, as one hand plays them.
    jitter = dict(zip(moments, rng.normal(0, plan.jitter_ms / 1000, len(moments)), strict=True))
    if plan.degradation == "off_grid":
        shifts = rng.normal(0, plan.strength / 1000, len(moments))
        jitter = dict(zip(moments, shifts, strict=True))
    foreign = _foreign_moments(plan, moments, rng)
    gate = 1.0 if plan.pattern in ONE_SHOTS else _GATES[plan.articulation]
    played: list[tuple[int, int, int, int, int, float]] = []
    for i, note in enumerate(sorted(notes, key=lambda n: (n.start, n.pitch))):
        start_s = _swung(note.start, plan.swing) * 60 / plan.tempo_bpm + jitter[note.start]
        start = max(0, round(start_s * SAMPLE_RATE_HZ))
        stop = start + max(960, round(note.length * gate * 60 / plan.tempo_bpm * SAMPLE_RATE_HZ))
        velocity = plan.velocity * (0.7 + 0.3 * note.accent) + rng.normal(0, 4)
        channel, cents, pitch = main, 0.0, min(max(note.pitch, 0), 127)
        if plan.intruder is not None and note.start in foreign:
            channel, pitch = _INTRUDER_CHANNEL, fold(note.pitch, *playing_range(*plan.intruder))
        elif plan.degradation == "detuned":
            channel = _DETUNE_CHANNELS[i % len(_DETUNE_CHANNELS)]
            cents = plan.strength * float(rng.uniform(0.6, 1.4)) * float(rng.choice([-1, 1]))
        if start < length_samples:
            level = int(min(max(velocity, 8), 127))
            played.append((channel, pitch, start, min(stop, length_samples), level, cents))
    return sorted(events + _note_events(played), key=lambda event: event[0])


def _foreign_moments(
    plan: LoopPlan, moments: list[float], rng: np.random.Generator
) -> frozenset[float]:
    """Choose the onsets that the intruding instrument plays."""
    if plan.intruder is None:
        return frozenset()
    count = max(1, round(plan.strength * len(moments)))
    return frozenset(moments[int(i)] for i in rng.permutation(len(moments))[:count])


def _note_events(played: list[tuple[int, int, int, int, int, float]]) -> list[Event]:
    """Turn (channel, pitch, start, stop, velocity, cents) into events, same-pitch notes cut."""
    ordered = sorted(played)
    events: list[tuple[int, int, bytes]] = []
    for i, (channel, pitch, start, stop, velocity, cents) in enumerate(ordered):
        if i + 1 < len(ordered) and ordered[i + 1][:2] == (channel, pitch):
            stop = min(stop, ordered[i + 1][2])
        if stop <= start:
            continue
        if cents:
            events.append((start, 1, bend(channel, cents)))
        events.append((start, 2, note_on(channel, pitch, velocity)))
        events.append((stop, 0, note_off(channel, pitch)))
    events.sort(key=lambda e: (e[0], e[1]))
    return [(tick, message) for tick, _, message in events]


def finish(plan: LoopPlan, dry: Samples) -> RenderedLoop:
    """Apply effects, the sample-domain degradation, level and fade; quantize to int16."""
    rng = plan.rng("sound")
    samples = apply_effects(dry, plan.effects, rng, SAMPLE_RATE_HZ)
    fade = min(len(samples), 2400 if plan.pattern in ONE_SHOTS else 240)
    samples = samples.copy()
    samples[len(samples) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    detail = ""
    if plan.degradation == "other_instrument" and plan.intruder is not None:
        detail = program_name(*plan.intruder)
    elif plan.degradation != "none" and plan.degradation not in SCORE_DEGRADATIONS:
        samples, detail = degrade(samples, plan.degradation, plan.strength, rng, SAMPLE_RATE_HZ)
    if plan.degradation != "dc":
        samples = normalize_peak(samples, plan.peak)
    quantized = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    return RenderedLoop(plan, quantized, detail)


def render(plans: list[LoopPlan]) -> list[RenderedLoop]:
    """Render plans in one FluidSynth run; loops that came out silent are left out."""
    segments = [
        (perform(plan, write_notes(plan)), round(plan.duration_s * SAMPLE_RATE_HZ))
        for plan in plans
    ]
    return [
        finish(plan, dry)
        for plan, dry in zip(plans, render_segments(segments), strict=True)
        if rms(dry) > _SILENT_RMS
    ]


def label_row(loop: RenderedLoop) -> dict[str, object]:
    """Return a loop's labels as a flat row."""
    plan = loop.plan
    return {
        "index": plan.index,
        "seed": plan.seed,
        "split": plan.split,
        "family": plan.family,
        "program": plan.program,
        "program_name": program_name(plan.family, plan.program),
        "key": plan.key_name,
        "mode": plan.mode,
        "tempo_bpm": plan.tempo_bpm,
        "beats_per_bar": plan.beats_per_bar,
        "bars": plan.bars,
        "pattern": plan.pattern,
        "swing": plan.swing,
        "articulation": plan.articulation,
        "velocity": plan.velocity,
        "effects": json.dumps(plan.effects, sort_keys=True),
        "degradation": plan.degradation,
        "strength": plan.strength,
        "strength_unit": DEGRADATIONS[plan.degradation][2] if plan.degradation != "none" else "",
        "degradation_detail": loop.detail,
        "duration_s": round(len(loop.samples) / SAMPLE_RATE_HZ, 6),
        "length_samples": len(loop.samples),
        "sample_rate_hz": SAMPLE_RATE_HZ,
    }
