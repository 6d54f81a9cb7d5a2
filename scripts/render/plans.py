"""A loop's plan: everything about it that is drawn before a sound is made."""

from dataclasses import dataclass, field, replace

import numpy as np

from .effects import draw_effects
from .harmony import MODE_WEIGHTS, SCALES
from .programs import FAMILIES, HELD_OUT_KEYS, KEY_NAMES, split_of

ONE_SHOTS = ("one_shot", "drum_hit")
_ARTICULATIONS = ("normal", "staccato", "legato", "muted")
_LONG_SHARE = 0.1
_ONE_SHOT_WEIGHT = 0.4

# kind -> (lowest strength, highest strength, unit); see draw_degradation for what each applies to.
DEGRADATIONS: dict[str, tuple[float, float, str]] = {
    "other_instrument": (0.3, 0.8, "share of notes"),
    "detuned": (50.0, 200.0, "cents per note"),
    "off_grid": (35.0, 130.0, "ms standard deviation"),
    "clipping": (8.0, 30.0, "dB over full scale"),
    "noise": (22.0, -3.0, "dB signal to noise"),
    "dropout": (0.15, 0.7, "share of the clip"),
    "silence": (0.7, 0.95, "share of the clip"),
    "reversed": (1.0, 1.0, ""),
    "varispeed": (200.0, 800.0, "cents"),
    "low_passed": (1500.0, 250.0, "Hz"),
    "high_passed": (400.0, 2500.0, "Hz"),
    "dc": (0.08, 0.5, "of full scale"),
}
SCORE_DEGRADATIONS = ("other_instrument", "detuned", "off_grid")


@dataclass(frozen=True)
class LoopPlan:
    """One loop to be; `seed` and `index` fix every later random choice."""

    index: int
    seed: int
    family: str
    program: int
    key: int
    mode: str
    tempo_bpm: float
    beats_per_bar: int
    bars: int
    pattern: str
    swing: float
    articulation: str
    velocity: int
    jitter_ms: float
    duration_s: float
    peak: float
    effects: dict[str, float] = field(default_factory=dict)
    degradation: str = "none"
    strength: float = 0.0
    intruder: tuple[str, int] | None = None

    @property
    def split(self) -> str:
        """Which split the program and key belong to (drums have no key)."""
        return split_of(self.family, self.program, self.key_name)

    @property
    def key_name(self) -> str:
        """Key as written in the labels."""
        return "none" if self.family == "drums" else KEY_NAMES[self.key]

    def rng(self, stage: str) -> np.random.Generator:
        """Return the loop's own generator for a stage ("plan", "notes", "perform", "sound")."""
        return stage_rng(self.seed, self.index, stage)


def stage_rng(seed: int, index: int, stage: str) -> np.random.Generator:
    """Return the generator of one stage of one loop."""
    return np.random.default_rng([seed, index, ("plan", "notes", "perform", "sound").index(stage)])


def _draw_program(
    families: tuple[str, ...], split: str, rng: np.random.Generator
) -> tuple[str, int, int]:
    """Draw (family, program, key index) from "train", "heldout" or "all"."""
    weights = np.array([FAMILIES[f].weight for f in families])
    family = families[rng.choice(len(families), p=weights / weights.sum())]
    chosen = FAMILIES[family]
    wants_program = split == "heldout" and (family == "drums" or rng.random() < 0.6)
    programs = [p for p in chosen.programs if p not in chosen.held_out]
    keys = [i for i, name in enumerate(KEY_NAMES) if name not in HELD_OUT_KEYS]
    if split == "all":
        programs, keys = list(chosen.programs), list(range(12))
    elif wants_program:
        programs, keys = list(chosen.held_out), list(range(12))
    elif split == "heldout":
        keys = [KEY_NAMES.index(k) for k in HELD_OUT_KEYS]
    return family, int(rng.choice(programs)), int(rng.choice(keys))


def _draw_length(rng: np.random.Generator) -> tuple[float, int, int]:
    """Draw (tempo, beats per bar, bars): 1.5-10 s mostly, one in ten 12-25 s."""
    is_long = rng.random() < _LONG_SHARE
    shortest, longest = (12.0, 25.0) if is_long else (1.4, 10.0)
    while True:
        tempo = float(rng.integers(70, 181))
        beats = 4 if rng.random() < 0.88 else 3
        bars = int(rng.choice([4, 8, 8, 12, 16] if is_long else [1, 2, 2, 4, 4, 8]))
        if shortest <= bars * beats * 60 / tempo <= longest:
            return tempo, beats, bars


def draw_degradation(
    plan: LoopPlan,
    rng: np.random.Generator,
    allowed: tuple[str, ...] = tuple(DEGRADATIONS),
    least: float = 0.0,
) -> LoopPlan:
    """Give a clean plan one degradation that is audible on it, with a random strength.

    The strength lies in its kind's range, the fraction `least` from the lowest at least.

    The plan stays clean where none of the `allowed` kinds would be heard; kinds that are named more
    than once are drawn as much more often.
    """
    kinds = ["clipping", "noise", "silence", "varispeed", "low_passed", "high_passed"]
    if plan.pattern not in ONE_SHOTS:
        kinds += ["other_instrument", "dropout"]
        if "sustained" not in plan.pattern:
            kinds.append("off_grid")
        if plan.family != "drums":
            kinds.append("detuned")
    if FAMILIES[plan.family].decays and "sustained" not in plan.pattern:
        kinds.append("reversed")
    if rng.random() < 0.3:
        kinds.append("dc")
    kinds = [kind for kind in kinds for _ in range(allowed.count(kind))]
    if not kinds:
        return plan
    kind = str(rng.choice(kinds))
    low, high, _ = DEGRADATIONS[kind]
    place = least + (1.0 - least) * float(rng.random())
    strength = low + (high - low) * place
    if kind in ("low_passed", "high_passed"):
        place = least + (1.0 - least) * float(rng.random())
        strength = low * (high / low) ** place
    if kind == "low_passed" and plan.family == "bass":
        strength /= 3  # a bass has little above 500 Hz to lose
    if kind == "varispeed" and rng.random() < 0.5:
        strength = -strength
    intruder = None
    if kind == "other_instrument":
        others = [f for f in FAMILIES if f not in (plan.family, "drums")]
        family = str(rng.choice(others))
        programs = [p for p in FAMILIES[family].programs if p not in FAMILIES[family].held_out]
        intruder = (family, int(rng.choice(programs)))
    return replace(plan, degradation=kind, strength=round(strength, 3), intruder=intruder)


def undegraded(plan: LoopPlan) -> LoopPlan:
    """The same loop as it was before its degradation."""
    return replace(plan, degradation="none", strength=0.0, intruder=None)


def draw_plan(
    index: int,
    seed: int,
    families: tuple[str, ...],
    split: str,
    degraded_fraction: float,
    degradations: tuple[str, ...] = tuple(DEGRADATIONS),
    least_strength: float = 0.0,
) -> LoopPlan:
    """Draw loop number `index` of a seeded, order-free sequence."""
    rng = stage_rng(seed, index, "plan")
    family, program, key = _draw_program(families, split, rng)
    patterns = FAMILIES[family].patterns
    weights = np.array([_ONE_SHOT_WEIGHT if p in ONE_SHOTS else 1.0 for p in patterns])
    pattern = str(rng.choice(patterns, p=weights / weights.sum()))
    tempo, beats, bars = _draw_length(rng)
    if family == "drums":
        beats = 4
    duration_s = bars * beats * 60 / tempo
    if pattern in ONE_SHOTS:
        bars, duration_s = 1, float(rng.uniform(0.3, 1.6))
    plan = LoopPlan(
        index=index,
        seed=seed,
        family=family,
        program=program,
        key=key,
        mode=str(rng.choice(list(SCALES), p=MODE_WEIGHTS)) if family != "drums" else "none",
        tempo_bpm=tempo,
        beats_per_bar=beats,
        bars=bars,
        pattern=pattern,
        swing=round(float(rng.uniform(0.3, 1.0)), 2) if rng.random() < 0.2 else 0.0,
        articulation=str(rng.choice(_ARTICULATIONS, p=[0.5, 0.2, 0.15, 0.15])),
        velocity=int(rng.integers(60, 121)),
        jitter_ms=round(float(rng.uniform(0, 8)), 2),
        duration_s=duration_s,
        peak=round(10 ** (float(rng.uniform(-14, -0.5)) / 20), 4),
        effects=draw_effects(rng),
    )
    if rng.random() >= degraded_fraction:
        return plan
    return draw_degradation(plan, rng, degradations, least_strength)
