import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from scripts.render import effects, midi
from scripts.render.demo import demo_plans
from scripts.render.harmony import SCALES, Setting, make_setting
from scripts.render.loops import perform, render, write_notes
from scripts.render.ogg import page_checksum, with_serial
from scripts.render.patterns import PATTERNS
from scripts.render.plans import DEGRADATIONS, draw_plan, undegraded
from scripts.render.programs import (
    FAMILIES,
    GM_NAMES,
    HELD_OUT_KEYS,
    playing_range,
    split_of,
)

RATE_HZ = midi.SAMPLE_RATE_HZ
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "scripts.render"]
needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not midi.SOUNDFONT.exists(),
    reason="needs fluidsynth and the FluidR3 GM soundfont",
)


def tone(seconds=1.0, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(
        np.float32
    )


def plans(n=200, split="train", fraction=0.35):
    return [draw_plan(i, 7, tuple(FAMILIES), split, fraction) for i in range(n)]


def test_kinds_named_twice_come_twice_as_often_and_strengths_begin_where_asked():
    kinds = ("off_grid", "noise", "noise")
    drawn = [draw_plan(i, 7, ("bass",), "train", 1.0, kinds, 0.5) for i in range(400)]
    by_kind = {kind: [p for p in drawn if p.degradation == kind] for kind in set(kinds)}
    assert 1.5 < len(by_kind["noise"]) / len(by_kind["off_grid"]) < 4  # not every loop has a grid
    for kind, found in by_kind.items():
        low, high, _ = DEGRADATIONS[kind]
        places = [(plan.strength - low) / (high - low) for plan in found]
        assert 0.49 < min(places) < 0.6 and 0.9 < max(places) <= 1.0
    clean = draw_plan(0, 7, ("bass",), "train", 0.0)
    assert undegraded(draw_plan(0, 7, ("bass",), "train", 1.0)) == clean


# --- tables -----------------------------------------------------------------------------------


def test_program_table_is_general_midi():
    assert len(GM_NAMES) == 128
    assert (GM_NAMES[0], GM_NAMES[33], GM_NAMES[127]) == (
        "acoustic_grand_piano",
        "finger_bass",
        "gunshot",
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_holds_out_some_programs_and_knows_its_patterns(name):
    family = FAMILIES[name]
    assert set(family.held_out) < set(family.programs)
    assert 0.1 <= len(family.held_out) / len(family.programs) <= 0.3
    assert set(family.patterns) <= set(PATTERNS)


# --- patterns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beats_per_bar", [3, 4])
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_fill_their_bars_with_playable_notes(name, beats_per_bar):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        setting = make_setting(seed, "minor", 2, beats_per_bar, 40, 76, rng)
        notes = PATTERNS[name](setting, rng)
        assert notes
        assert all(0 <= n.start < 2 * beats_per_bar for n in notes)
        assert all(n.length > 0 and 0 <= n.accent <= 1 for n in notes)
        assert all(20 <= n.pitch <= 108 for n in notes)


@pytest.mark.parametrize("name", ["root_eighths", "walking", "riff", "melody", "arpeggio"])
def test_melodic_patterns_stay_in_their_scale(name):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        setting = make_setting(seed % 12, "dorian", 4, 4, 36, 72, rng)
        notes = PATTERNS[name](setting, rng)
        assert {(n.pitch - seed) % 12 for n in notes} <= set(SCALES["dorian"])


def test_chords_are_stacked_thirds_above_the_tonic():
    c_major = Setting(0, SCALES["major"], (0,), 4, 48, 84)
    assert c_major.chord(0) == [48, 52, 55]
    assert c_major.chord(4, 4) == [55, 59, 62, 65]


# --- plans ------------------------------------------------------------------------------------


def test_plans_are_seeded_and_do_not_depend_on_their_neighbors():
    assert plans(5) == plans(200)[:5]
    assert draw_plan(3, 8, ("bass",), "train", 0.35) != draw_plan(3, 7, ("bass",), "train", 0.35)


def test_training_plans_never_use_held_out_programs_or_keys():
    for plan in plans():
        assert plan.split == "train"
        assert plan.program not in FAMILIES[plan.family].held_out
        assert plan.family == "drums" or plan.key_name not in HELD_OUT_KEYS
        if plan.intruder is not None:
            assert split_of(*plan.intruder, "C") == "train"


def test_held_out_plans_always_hold_something_out():
    kinds = {plan.split for plan in plans(split="heldout")}
    assert kinds == {"heldout_program", "heldout_key", "heldout_both"}


def test_share_of_degraded_and_of_long_loops():
    drawn = plans(1000)
    degraded = [p for p in drawn if p.degradation != "none"]
    assert 0.3 < len(degraded) / len(drawn) < 0.4
    assert {p.degradation for p in degraded} == set(DEGRADATIONS)
    assert 0.05 < np.mean([p.duration_s > 10 for p in drawn]) < 0.15


# --- performance ------------------------------------------------------------------------------


def onsets(plan):
    events = perform(plan, write_notes(plan))
    return [(t, m) for t, m in events if m[0] & 0xF0 == 0x90]


def clean_bass():
    plan = next(
        p for p in plans(fraction=0.0) if p.family == "bass" and p.pattern == "root_eighths"
    )
    return replace(plan, swing=0.0, jitter_ms=0.0)


def test_a_performance_is_in_time_and_every_note_ends():
    plan = clean_bass()
    events = perform(plan, write_notes(plan))
    assert events == sorted(events, key=lambda e: e[0])
    ons = [m[1] for _, m in events if m[0] == 0x90]
    offs = [m[1] for _, m in events if m[0] == 0x80]
    assert sorted(ons) == sorted(offs)
    eighth = 30 / plan.tempo_bpm * RATE_HZ
    assert [round(t / eighth) for t, _ in onsets(plan)] == list(range(len(ons)))
    assert all(abs(t - i * eighth) <= 1 for i, (t, _) in enumerate(onsets(plan)))


def test_off_grid_moves_the_onsets_by_its_strength():
    plan = clean_bass()
    moved = replace(plan, degradation="off_grid", strength=100.0, bars=8, duration_s=60.0)
    steady = replace(plan, bars=8, duration_s=60.0)
    shift_ms = [
        (a - b) / RATE_HZ * 1000
        for (a, _), (b, _) in zip(sorted(onsets(moved)), onsets(steady), strict=True)
    ]
    assert 40 < np.std(shift_ms) < 160


def test_swing_delays_only_the_off_beats():
    plan = clean_bass()
    beat = 60 / plan.tempo_bpm * RATE_HZ
    times = [t / beat for t, _ in onsets(replace(plan, swing=1.0))]
    assert times[:4] == pytest.approx([0, 2 / 3, 1, 5 / 3], abs=1e-3)


def test_detuned_notes_are_bent_and_foreign_notes_change_channel_and_range():
    plan = clean_bass()
    detuned = perform(replace(plan, degradation="detuned", strength=100.0), write_notes(plan))
    bends = [((m[2] << 7 | m[1]) - 8192) / 8192 * 1200 for t, m in detuned if m[0] & 0xF0 == 0xE0]
    assert all(55 <= abs(b) <= 145 for b in bends if b)
    assert sum(b != 0 for b in bends) == len(onsets(plan))
    flute = replace(plan, degradation="other_instrument", strength=0.5, intruder=("pipe", 74))
    foreign = [m for _, m in onsets(flute) if m[0] == 0x98]
    assert len(foreign) == round(0.5 * len(onsets(plan)))
    low, high = playing_range("pipe", 74)
    assert all(low <= m[1] <= high for m in foreign)


# --- MIDI and Ogg bytes -----------------------------------------------------------------------


def test_midi_file_bytes():
    data = midi.midi_file([(0, midi.note_on(0, 60, 100)), (200, midi.note_off(0, 60))])
    assert data[:14] == b"MThd\x00\x00\x00\x06\x00\x00\x00\x01" + (24000).to_bytes(2, "big")
    assert b"\x00\x90\x3c\x64\x81\x48\x80\x3c\x00\x00\xff\x2f\x00" in data
    with pytest.raises(ValueError, match="after"):
        midi.midi_file([(5, b"\xb0\x00\x00"), (4, b"\xb0\x00\x00")])


def test_ogg_serial_is_replaced_and_the_file_still_decodes(tmp_path):
    path = tmp_path / "a.ogg"
    sf.write(path, tone(), 32000, format="OGG", subtype="VORBIS")
    before, _ = sf.read(path)
    stream = path.read_bytes()
    header = bytearray(stream[: 28 + stream[27]])
    header[22:26] = bytes(4)
    assert page_checksum(bytes(header)) == int.from_bytes(stream[22:26], "little")
    changed = with_serial(stream, 5)
    assert changed != stream
    assert with_serial(changed, 5) == changed
    path.write_bytes(changed)
    np.testing.assert_array_equal(sf.read(path)[0], before)
    with pytest.raises(ValueError, match="Ogg page"):
        with_serial(stream[:-1], 5)


# --- degradations -----------------------------------------------------------------------------


def spectrum_center_hz(samples):
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float((power * np.fft.rfftfreq(len(samples), 1 / RATE_HZ)).sum() / power.sum())


def test_clipping_flattens_the_peaks():
    out = effects.clip(tone(), 12.0)
    assert np.abs(out).max() == 1.0
    assert np.mean(np.abs(out) > 0.999) > 0.5


@pytest.mark.parametrize("color", ["white", "pink", "hum"])
def test_noise_has_the_asked_level(color):
    clean = tone(2.0)
    out = effects.add_noise(clean, 6.0, color, np.random.default_rng(0), RATE_HZ)
    assert 20 * np.log10(effects.rms(clean) / effects.rms(out - clean)) == pytest.approx(
        6.0, abs=0.1
    )


def test_drop_out_and_cut_off_silence_their_share():
    gaps = effects.drop_out(tone() + 1, 0.4, 3, np.random.default_rng(0))
    assert np.mean(gaps == 0) == pytest.approx(0.4, abs=0.01)
    tail = effects.cut_off(tone() + 1, 0.8)
    assert np.all(tail[-round(0.8 * RATE_HZ) + 1 :] == 0)
    assert tail[0] == 1


def test_reverse_twice_is_the_same():
    samples = tone() * np.linspace(1, 0, RATE_HZ, dtype=np.float32)
    np.testing.assert_array_equal(effects.reverse(effects.reverse(samples)), samples)
    assert effects.rms(effects.reverse(samples)[:1000]) < effects.rms(samples[:1000])


def test_varispeed_changes_pitch_and_length_together():
    out = effects.varispeed(tone(2.0), 1200.0)
    assert len(out) == pytest.approx(RATE_HZ, abs=2)
    assert spectrum_center_hz(out) == pytest.approx(880, rel=0.02)


def test_filters_and_tilt_move_the_spectrum():
    noise = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    center = spectrum_center_hz(noise)
    assert spectrum_center_hz(effects.low_pass(noise, 500.0, RATE_HZ)) < 600
    assert spectrum_center_hz(effects.high_pass(noise, 8000.0, RATE_HZ)) > center + 1000
    assert spectrum_center_hz(effects.tilt(noise, -6.0, RATE_HZ)) < center - 100


def test_dc_shifts_the_mean_within_full_scale():
    out = effects.add_dc(tone(), 0.3)
    assert out.mean() == pytest.approx(0.3, abs=0.01)
    assert np.abs(out).max() <= 1


def test_effects_keep_length_and_refuse_unknown_names():
    rng = np.random.default_rng(0)
    for seed in range(30):
        chain = effects.draw_effects(np.random.default_rng(seed))
        out = effects.apply_effects(tone(0.3), chain, rng, RATE_HZ)
        assert out.shape == tone(0.3).shape
        assert out.dtype == np.float32
        assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="unknown effect"):
        effects.apply_effects(tone(0.1), {"sparkle": 1.0}, rng, RATE_HZ)
    with pytest.raises(ValueError, match="off_grid"):
        effects.degrade(tone(0.1), "off_grid", 1.0, rng, RATE_HZ)


# --- the demo plan and rendering --------------------------------------------------------------


def test_demo_plans_are_mostly_clean():
    drawn = demo_plans()
    assert len(drawn) == 150
    assert sum(p.degradation != "none" for p in drawn) == 35


@needs_fluidsynth
def test_rendered_loops_have_the_planned_length_pitch_and_level():
    plan = replace(
        clean_bass(), duration_s=2.0, key=9, pattern="one_shot", program=33, effects={}, peak=0.5
    )
    (loop,) = render([plan])
    assert len(loop.samples) == 2 * RATE_HZ
    assert np.abs(loop.samples).max() == round(0.5 * 32767)
    a1_or_octave = spectrum_center_hz(loop.samples / 32767)
    assert 40 < a1_or_octave < 500


@needs_fluidsynth
def test_a_loop_sounds_the_same_alone_and_among_others():
    some = [p for p in plans(30) if p.duration_s < 4 and p.degradation == "none"][:4]
    together = render(some)
    (alone,) = render([some[-1]])
    difference = np.abs(alone.samples.astype(int) - together[-1].samples.astype(int))
    # FluidSynth does not clear a reused voice's filter: the first 64 samples of a note may differ.
    assert np.mean(difference > 200) < 0.02


@needs_fluidsynth
def test_command_line_writes_complete_shards_and_single_files(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    common = [*COMMAND, "--n", "6", "--seed", "3", "--families", "bass,drums"]
    for extra in (["-o", str(tmp_path / "s")], ["-o", str(tmp_path / "w"), "--wav", "flac"]):
        subprocess.run(
            [*common, *extra], check=True, capture_output=True, env=environment, cwd=ROOT
        )
    table = pq.read_table(tmp_path / "s" / "labels.parquet").to_pylist()
    audio = np.load(tmp_path / "s" / "shard-00000.npy", mmap_mode="r")
    assert audio.dtype == np.int16
    assert sum(row["length_samples"] for row in table) == len(audio)
    row = table[-1]
    name = f"{row['family']}_{row['index']:06d}.flac"
    single, _ = sf.read(tmp_path / "w" / name, dtype="int16")
    start = row["offset_samples"]
    np.testing.assert_array_equal(audio[start : start + row["length_samples"]], single)


def test_command_line_refuses_unknown_families():
    done = subprocess.run(
        [*COMMAND, "-o", "x", "--families", "bass,kazoo"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "kazoo" in done.stderr
