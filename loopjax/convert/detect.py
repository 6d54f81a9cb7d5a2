"""What a checkpoint is: architecture, stored constants and front end, read off its tensors."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from loopjax.convert.layouts import Layout, Source
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig, mel_filterbank
from loopjax.htsat.model import HtsatConfig
from loopjax.htsat.swin import relative_index, window_mask

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
    depths = tuple(max((j + 1 for i, j in indices if i == s), default=0) for s in range(stages))
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
    tscam = tower.get("tscam_conv.bias", tower.get("tscam_conv.weight"))
    has_fusion = any(re.match(r"patch_embed\.(mel_conv2d|fusion_model)\.", key) for key in tower)
    hidden, dims = (_projection_width(layout, source, i) for i in (0, 1))
    return HtsatConfig(
        width=width,
        depths=depths,
        heads=heads,
        window=(round(rows**0.5) + 1) // 2,
        fusion=has_fusion if fusion is None else fusion,
        n_classes=None if tscam is None else tscam[0],
        projection_dim=dims,
        projection_hidden=hidden or 512,
        projection_kind="msclap" if layout.name == "msclap" else "clap",
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
    return inner != key and any(re.fullmatch(pattern, inner) for pattern in _RECOMPUTED)


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


def find_front_end(
    layout: Layout, source: Source, config: HtsatConfig
) -> tuple[LogMelConfig, list[str], list[str]]:
    """Chooses the log-mel front end: (front end, notes, problems).

    The originals let the stored filter bank override the computed one, so an AudioSet bank for
    32 kHz can sit silently in a 48 kHz network; here it decides. Fused towers store a bank that
    their forward pass never touches: the HTK mel is computed outside the network.
    """
    quantize = layout.name != "hf"  # transformers never does the int16 round trip
    if config.fusion:
        return LogMelConfig.clap_fused(quantize_int16=quantize), [], []
    candidates = {
        "laion": [LogMelConfig.clap_unfused(), LogMelConfig.clap_unfused(bank_rate_hz=32000)],
        "hf": [LogMelConfig.clap_unfused(quantize_int16=quantize)],
        "retrocirce": [
            LogMelConfig.audioset_32khz(),
            LogMelConfig.audioset_32khz(sample_rate_hz=48000, hop_samples=480),
            LogMelConfig.speech_commands_16khz(),
        ],
        "msclap": [LogMelConfig.msclap_2023(), LogMelConfig.msclap_2023(bank_rate_hz=None)],
    }[layout.name]
    if layout.name == "hf":
        return candidates[0], [], []
    n_fft = _stored_n_fft(layout, source)
    if n_fft is not None:
        candidates = [dataclasses.replace(c, n_fft=n_fft) for c in candidates]
    problems = _stft_problems(layout, source, candidates[0])
    bank = source.get(f"{layout.branch}logmel_extractor.melW")
    if bank is None:
        note = f"the file stores no filter bank; the usual one of layout {layout.name} is assumed"
        return candidates[0], [note], problems
    stored = bank.read()
    for candidate in candidates:
        computed = mel_filterbank(candidate)
        if stored.shape == computed.shape and np.abs(stored - computed).max() <= FILTER_TOLERANCE:
            notes = []
            if candidate is not candidates[0]:
                notes.append(
                    f"the stored filter bank is the one for {candidate.bank_hz} Hz on "
                    f"{candidate.sample_rate_hz} Hz audio; it is used as the original would"
                )
            return candidate, notes, problems
    problems.append(
        f"unknown filter bank: {layout.branch}logmel_extractor.melW matches none of the known "
        f"ones ({', '.join(f'{c.bank_hz} Hz' for c in candidates)})"
    )
    return candidates[0], [], problems


def _stored_n_fft(layout: Layout, source: Source) -> int | None:
    kernel = source.get(f"{layout.branch}spectrogram_extractor.stft.conv_real.weight")
    return kernel.shape[2] if kernel is not None and len(kernel.shape) == 3 else None


def _stft_problems(layout: Layout, source: Source, config: LogMelConfig) -> list[str]:
    n = config.n_fft
    angle = 2 * np.pi / n * (np.outer(np.arange(n // 2 + 1), np.arange(n)) % n)
    window = np.hanning(n + 1)[:-1]
    wanted = {"real": np.cos(angle) * window, "imag": -np.sin(angle) * window}
    problems = []
    for part, kernel in wanted.items():
        key = f"{layout.branch}spectrogram_extractor.stft.conv_{part}.weight"
        if key in source:
            stored = source[key].read()
            if stored.shape != (n // 2 + 1, 1, n):
                problems.append(f"wrong shape: {key} has {stored.shape}")
            elif np.abs(stored[:, 0] - kernel).max() > FILTER_TOLERANCE:
                problems.append(f"unknown window: {key} is not a periodic Hann window's DFT")
    return problems
