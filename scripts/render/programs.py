"""The General MIDI programs the generator plays, by family, and which of them are held out."""

from dataclasses import dataclass

_GM_NAMES = """
    acoustic_grand_piano bright_acoustic_piano electric_grand_piano honky_tonk_piano
    electric_piano_1 electric_piano_2 harpsichord clavinet celesta glockenspiel music_box vibraphone
    marimba xylophone tubular_bells dulcimer drawbar_organ percussive_organ rock_organ church_organ
    reed_organ accordion harmonica bandoneon nylon_guitar steel_guitar jazz_guitar clean_guitar
    muted_guitar overdriven_guitar distortion_guitar guitar_harmonics acoustic_bass finger_bass
    pick_bass fretless_bass slap_bass_1 slap_bass_2 synth_bass_1 synth_bass_2 violin viola cello
    contrabass tremolo_strings pizzicato_strings harp timpani string_ensemble_1 string_ensemble_2
    synth_strings_1 synth_strings_2 choir_aahs voice_oohs synth_voice orchestra_hit trumpet trombone
    tuba muted_trumpet french_horn brass_section synth_brass_1 synth_brass_2 soprano_sax alto_sax
    tenor_sax baritone_sax oboe english_horn bassoon clarinet piccolo flute recorder pan_flute
    blown_bottle shakuhachi whistle ocarina square_lead saw_lead calliope_lead chiff_lead
    charang_lead voice_lead fifths_lead bass_lead new_age_pad warm_pad polysynth_pad choir_pad
    bowed_pad metallic_pad halo_pad sweep_pad rain_fx soundtrack_fx crystal_fx atmosphere_fx
    brightness_fx goblins_fx echoes_fx sci_fi_fx sitar banjo shamisen koto kalimba bagpipe fiddle
    shanai tinkle_bell agogo steel_drums woodblock taiko_drum melodic_tom synth_drum reverse_cymbal
    guitar_fret_noise breath_noise seashore bird_tweet telephone_ring helicopter applause
    gunshot"""
GM_NAMES = tuple(_GM_NAMES.split())
DRUM_KIT_NAMES = {
    0: "standard_kit",
    8: "room_kit",
    16: "power_kit",
    24: "electronic_kit",
    25: "tr808_kit",
    32: "jazz_kit",
    40: "brush_kit",
    48: "orchestra_kit",
}
KEY_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
HELD_OUT_KEYS = ("F#", "Bb")


@dataclass(frozen=True)
class Family:
    """Programs of one family, its playing range (MIDI pitches), its patterns and its fraction."""

    programs: tuple[int, ...]
    held_out: tuple[int, ...]
    low: int
    high: int
    patterns: tuple[str, ...]
    weight: float
    decays: bool = True


_LINES = ("riff", "melody", "arpeggio", "ostinato", "one_shot")
_CHORDAL = ("block_chords", "stabs", "arpeggio", "riff", "melody", "sustained_chords", "one_shot")

FAMILIES = {
    "bass": Family(
        tuple(range(32, 40)),
        (35, 37),
        28,
        52,
        (
            "root_eighths",
            "root_fifth",
            "walking",
            "arpeggio",
            "riff",
            "octaves",
            "syncopated",
            "gallop",
            "sustained_line",
            "one_shot",
        ),
        0.24,
    ),
    "guitar": Family(
        tuple(range(24, 32)),
        (26, 30),
        40,
        76,
        (
            "strum",
            "power_chords",
            "fingerpick",
            "riff",
            "melody",
            "scratch",
            "sustained_chords",
            "gallop",
            "arpeggio",
            "one_shot",
        ),
        0.24,
    ),
    "keys": Family(tuple(range(8)), (2, 5), 40, 84, _CHORDAL, 0.07),
    "mallets": Family(tuple(range(8, 16)), (11,), 55, 91, _CHORDAL, 0.04),
    "organ": Family(tuple(range(16, 24)), (18, 21), 43, 80, _CHORDAL, 0.04, decays=False),
    "strings": Family(
        tuple(range(40, 48)), (42,), 43, 81, (*_LINES, "stabs", "sustained_line"), 0.04
    ),
    "ensemble": Family(
        tuple(range(48, 56)), (49,), 48, 79, (*_CHORDAL, "sustained_chords"), 0.03, decays=False
    ),
    "brass": Family(
        tuple(range(56, 64)), (57, 62), 46, 77, (*_LINES, "stabs", "sustained_line"), 0.04
    ),
    "reed": Family(tuple(range(64, 72)), (66,), 48, 79, (*_LINES, "sustained_line"), 0.03),
    "pipe": Family(tuple(range(72, 80)), (73, 76), 60, 91, (*_LINES, "sustained_line"), 0.03),
    "lead": Family(
        tuple(range(80, 88)), (81,), 48, 84, (*_LINES, "stabs", "gallop"), 0.03, decays=False
    ),
    "pad": Family(
        tuple(range(88, 96)), (89, 94), 43, 79, ("sustained_chords", "block_chords"), 0.03, False
    ),
    "fx": Family(tuple(range(96, 104)), (99,), 43, 79, (*_CHORDAL, "ostinato"), 0.02, False),
    "ethnic": Family(
        tuple(range(104, 112)), (105, 108), 48, 79, (*_LINES, "sustained_line", "strum"), 0.03
    ),
    "percussive": Family(
        tuple(range(112, 119)), (114,), 48, 79, ("riff", "ostinato", "gallop", "one_shot"), 0.02
    ),
    "drums": Family(
        tuple(DRUM_KIT_NAMES),
        (25, 40),
        35,
        81,
        (
            "rock_beat",
            "four_on_the_floor",
            "breakbeat",
            "shuffle_beat",
            "half_time",
            "tom_groove",
            "hand_percussion",
            "drum_hit",
        ),
        0.11,
    ),
}


# Programs whose samples sit elsewhere than their family's range.
_RANGES = {
    42: (36, 69),
    43: (28, 52),
    47: (36, 57),
    57: (40, 67),
    58: (29, 53),
    67: (36, 66),
    70: (34, 62),
    72: (72, 98),
    87: (33, 57),
}


def playing_range(family: str, program: int) -> tuple[int, int]:
    """Return the lowest and highest MIDI pitch a program plays."""
    chosen = FAMILIES[family]
    return (
        (chosen.low, chosen.high)
        if family == "drums"
        else _RANGES.get(program, (chosen.low, chosen.high))
    )


def program_name(family: str, program: int) -> str:
    """Return the readable name of a program number (a kit name for drums)."""
    return DRUM_KIT_NAMES[program] if family == "drums" else GM_NAMES[program]


def split_of(family: str, program: int, key: str) -> str:
    """Return "train", "heldout_program", "heldout_key" or "heldout_both"."""
    by_program = program in FAMILIES[family].held_out
    by_key = key in HELD_OUT_KEYS
    if by_program and by_key:
        return "heldout_both"
    if by_program:
        return "heldout_program"
    return "heldout_key" if by_key else "train"
