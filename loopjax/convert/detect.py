"""What a checkpoint is: architecture, stored constants and front end, read off its tensors."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from loopjax.convert.layouts import Layout, Source
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig, mel_filterbank
from loopjax.htsat.model import HtsatConfig
from loopjax.htsat.swin import relative_index, window_mask

MAX_STAGES = 7  # then the image is one token
MAX_BLOCKS = 200  # published towers have up to 18
MAX_WIDTH = 1 << 16

# ---- architecture from shapes ---------------------------------------------------------------


def find_config(layout: Layout, source: Source, fusion: bool | None) -> HtsatConfig:
    """Reads the architecture off the shapes; the majority decides, so one bad tensor stands out.

    Raises:
        UserError: no transformer blocks inside.
    """
    tower = {
        key.removeprefix(layout.branch): tensor.shape
        for key, tensor in source.items()
        if key.startswith(layout.branch)
    }
    blocks = [m for m in (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key) for key in tower) if m]
    if not blocks:
        raise UserError(f"no transformer blocks under {layout.branch}layers.*: not an HTS-AT")
    indices = {(int(m[1]), int(m[2])) for m in blocks}
    stages = 1 + max(i for i, _ in indices)
    if stages > MAX_STAGES or len(indices) > MAX_BLOCKS:
        raise UserError(f"no HTS-AT: {stages} stages and {len(indices)} blocks, by their names")
    numbers = [[j for i, j in indices if i == stage] for stage in range(stages)]
    depths = tuple(1 + max(stage, default=-1) for stage in numbers)
    if any(depth > len(stage) + 1 for depth, stage in zip(depths, numbers, strict=True)):
        raise UserError(f"no HTS-AT: blocks are missing from stages of {depths}, by their names")
    tables = r"layers\.(\d+)\..*relative_position_bias_table"
    norms = r"layers\.(\d+)\.blocks\..*(norm[12]|layernorm_(?:before|after))\.(?:weight|bias)"
    width = _vote((shape[0] // 2 ** int(m[1]) for m, shape in _matches(tower, norms) if shape), 96)
    heads = tuple(
        _vote(
            (shape[1] for m, shape in _matches(tower, tables) if m[1] == str(s) and len(shape) > 1),
            4 * 2**s,
        )
        for s in range(stages)
    )
    rows = _vote((shape[0] for _, shape in _matches(tower, tables) if shape), 225)
    tscam = [tower[n] for n in ("tscam_conv.bias", "tscam_conv.weight") if n in tower]
    has_fusion = any(re.match(r"patch_embed\.(mel_conv2d|fusion_model)\.", key) for key in tower)
    hidden, dims = (_projection_width(layout, source, i) for i in (0, 1))
    config = HtsatConfig(
        width=width,
        depths=depths,
        heads=heads,
        window=(round(rows**0.5) + 1) // 2,
        fusion=has_fusion if fusion is None else fusion,
        n_classes=_vote((shape[0] for shape in tscam if shape), 527) if tscam else None,
        projection_dim=dims,
        projection_hidden=hidden or 512,
        projection_kind="msclap" if layout.name == "msclap" else "clap",
    )
    _check_sizes(config)
    return config


def _check_sizes(config: HtsatConfig) -> None:
    """Refuses what no network can be; what merely does not fit is reported tensor by tensor."""
    wide = (config.width, config.projection_hidden, config.projection_dim, config.n_classes)
    is_possible = all(1 <= size <= MAX_WIDTH for size in wide if size is not None)
    for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        side = config.grid >> stage
        is_possible = (
            is_possible
            and depth >= 1
            and heads >= 1
            and config.width * 2**stage % heads == 0
            and config.window >= 1
            and side >= 1
            and side % min(side, config.window) == 0
        )
    if not is_possible:
        raise UserError(
            f"no HTS-AT: the tensors' shapes speak of width {config.width}, blocks "
            f"{config.depths}, heads {config.heads}, windows of {config.window}, "
            f"{config.n_classes} classes and a projection to {config.projection_dim}, which do not "
            "fit together"
        )


def _matches(shapes: Mapping[str, tuple[int, ...]], pattern: str):
    for key, shape in shapes.items():
        match = re.fullmatch(pattern, key)
        if match:
            yield match, shape


def _vote(values: Iterable[int], default: int) -> int:
    counts = Counter(values)
    return counts.most_common(1)[0][0] if counts else default


def _projection_width(layout: Layout, source: Source, index: int) -> int | None:
    """Output width of the projection's first or second layer; None without a projection."""
    if not layout.projection:
        return None
    (name,) = layout.projection[index].theirs
    shapes = [
        source[f"{name}.{leaf}"].shape for leaf in ("weight", "bias") if f"{name}.{leaf}" in source
    ]
    others = [key for rule in layout.projection for key in source if key.startswith(rule.theirs[0])]
    if not others:
        return None
    return _vote((shape[0] for shape in shapes if shape), 512)


# ---- stored constants -----------------------------------------------------------------------

_RECOMPUTED = (
    r".*\.relative_position_index",
    r".*\.attn_mask",
    r"spectrogram_extractor\.stft\.conv_(real|imag)\.weight",
    r"logmel_extractor\.melW",
)


def is_recomputed(layout: Layout, key: str) -> bool:
    """Whether a tensor is a constant of the architecture that we compute and only compare."""
    inner = key.removeprefix(layout.branch)
    return key.startswith(layout.branch) and any(re.fullmatch(p, inner) for p in _RECOMPUTED)


def constant_problems(
    layout: Layout, source: Source, keys: Iterable[str], config: HtsatConfig
) -> Iterable[str]:
    """Compares stored index tables and shift masks with ours; filters are compared elsewhere."""
    for key in keys:
        stage = re.search(r"layers\.(\d+)\.", key)
        if stage is None:
            continue
        if key.endswith("relative_position_index"):
            wanted = relative_index(config.window)
        else:
            wanted = window_mask(config.grid // 2 ** int(stage[1]), config.window)
        stored = source[key].read()
        if stored.shape != wanted.shape or not np.array_equal(stored, wanted):
            yield f"unusual constant: {key} differs from the Swin definition"


# ---- front end ------------------------------------------------------------------------------

FILTER_TOLERANCE = 1e-6  # float32 banks of torchlibrosa and ours agree to 1.2e-9
_BANKS_OF = {
    "laion": (LogMelConfig.clap_unfused(), LogMelConfig.clap_unfused(bank_rate_hz=32000)),
    "retrocirce": (
        LogMelConfig.audioset_32khz(),
        LogMelConfig.audioset_32khz(sample_rate_hz=48000, hop_samples=480),
        LogMelConfig.speech_commands_16khz(),
    ),
    "msclap": (LogMelConfig.msclap_2023(), LogMelConfig.msclap_2023(bank_rate_hz=None)),
    "bare": (
        LogMelConfig.clap_unfused(),
        LogMelConfig.audioset_32khz(),
        LogMelConfig.speech_commands_16khz(),
    ),
}


@dataclass
class FrontEnd:
    """The log-mel front end of a tower.

    Attributes:
        config: itself.
        notes: remarks that are no errors.
        assumptions: what the file does not say.
        problems: why it cannot be used.
    """

    config: LogMelConfig
    notes: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_front_end(layout: Layout, source: Source, config: HtsatConfig) -> FrontEnd:
    """Chooses the log-mel front end.

    The originals let the stored filter bank override the computed one, so an AudioSet bank for
    32 kHz can sit silently in a 48 kHz network; here it decides. Fused towers store a bank that
    their forward pass never touches: the HTK mel is computed outside the network.
    """
    if layout.name == "hf":  # transformers never does the int16 round trip
        fused, unfused = LogMelConfig.clap_fused, LogMelConfig.clap_unfused
        return FrontEnd((fused if config.fusion else unfused)(quantize_int16=False))
    if config.fusion:
        return FrontEnd(LogMelConfig.clap_fused())
    candidates = list(_BANKS_OF[layout.name])
    n_fft = _stored_n_fft(layout, source)
    if n_fft is not None:
        candidates = [dataclasses.replace(c, n_fft=n_fft) for c in candidates]
    found = FrontEnd(candidates[0], problems=list(_stft_problems(layout, source, candidates[0])))
    name = f"{layout.branch}logmel_extractor.melW"
    if name not in source:
        if layout.name == "bare":
            found.problems.append(
                "a bare tower without a filter bank does not say at which rate it listens: save it "
                "inside its model (audio_branch.* for LAION, sed_model.* for RetroCirce)"
            )
        else:
            found.assumptions.append(
                f"the file stores no filter bank; the usual one of layout {layout.name} is assumed"
            )
        return found
    stored = source[name].read()
    fitting = [c for c in candidates if _is_rounded(stored, mel_filterbank(c))]
    if not fitting:
        found.problems.append(
            f"unknown filter bank: {name} matches none of the known ones "
            f"({', '.join(f'{c.bank_hz} Hz' for c in candidates)})"
        )
        return found
    found.config = fitting[0]
    if layout.name == "bare":
        found.assumptions.append(
            f"a bare tower with a filter bank for {found.config.bank_hz} Hz is taken for "
            f"{_OWNERS[found.config.sample_rate_hz]}"
        )
    elif found.config is not candidates[0]:
        found.notes.append(
            f"the stored filter bank is the one for {found.config.bank_hz} Hz on "
            f"{found.config.sample_rate_hz} Hz audio; it is used as the original would"
        )
    return found


_OWNERS = {
    48000: "LAION-CLAP's without fusion",
    32000: "RetroCirce's for AudioSet (Microsoft CLAP's, at 44.1 kHz, has the same bank)",
    16000: "RetroCirce's for Speech Commands",
}


def _is_rounded(stored: np.ndarray, computed: np.ndarray) -> bool:
    """Whether stored constants are the computed ones, as they are or in half precision.

    A file in half precision may hold float32 again, so the values decide and not their type.
    """
    if stored.shape != computed.shape:
        return False
    stored = np.asarray(stored, np.float32)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        if np.array_equal(stored.astype(dtype).astype(np.float32), stored):
            step = 0.0 if dtype is np.float32 else float(ml_dtypes.finfo(dtype).eps)
            if (np.abs(stored - computed) <= FILTER_TOLERANCE + step * np.abs(computed)).all():
                return True
    return False


def _stored_n_fft(layout: Layout, source: Source) -> int | None:
    kernel = source.get(f"{layout.branch}spectrogram_extractor.stft.conv_real.weight")
    return kernel.shape[2] if kernel is not None and len(kernel.shape) == 3 else None


def _stft_problems(layout: Layout, source: Source, config: LogMelConfig) -> Iterable[str]:
    n = config.n_fft
    angle = 2 * np.pi / n * (np.outer(np.arange(n // 2 + 1), np.arange(n)) % n)
    window = np.hanning(n + 1)[:-1]
    wanted = {"real": np.cos(angle) * window, "imag": -np.sin(angle) * window}
    for part, kernel in wanted.items():
        key = f"{layout.branch}spectrogram_extractor.stft.conv_{part}.weight"
        if key in source:
            stored = source[key].read()
            if stored.shape != (n // 2 + 1, 1, n):
                yield f"wrong shape: {key} has {stored.shape}"
            elif not _is_rounded(stored[:, 0], kernel):
                yield f"unknown window: {key} is not a periodic Hann window's DFT"
