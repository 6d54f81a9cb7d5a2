"""A checkpoint's tensors onto our parameters, strictly in both directions.

A mapping succeeds only if every parameter of ours is filled and every tensor of the file is used,
recomputed and found equal, or ignored by name (text tower, training state). Everything wrong is
collected and reported together, in the file's own names.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx

from loopjax.convert.detect import constant_problems, find_config, find_front_end, is_recomputed
from loopjax.convert.layouts import Branch, Layout, Source, find_branch
from loopjax.encoders.encoder import abstract_model
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig


@dataclass
class Mapped:
    """A checkpoint in our names, ready to be written.

    Attributes:
        layout: which family.
        config: architecture found in the tensors.
        weights: float32 arrays by our flat names.
        front_end: the log-mel front end the stored filters and the layout call for.
        ignored: keys passed over by name or because they lie elsewhere in the file.
        notes: remarks for the user that are no errors.
        assumptions: what about the front end the file does not say.
    """

    layout: Layout
    config: HtsatConfig
    weights: dict[str, np.ndarray]
    front_end: LogMelConfig
    ignored: list[str]
    notes: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)


@dataclass
class Filled:
    """A network's parameters as far as a file fills them.

    Attributes:
        weights: float32 arrays by our flat names.
        used: the file's names of all parameters.
        missing: those that are not in the file.
        problems: wrong shapes and values, a sentence each.
    """

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def fill(layout: Layout, source: Source, abstract: Any) -> Filled:
    """Reads a network's parameters, given as its abstract state, from a file's tensors."""
    filled = Filled()
    for path, leaf in nnx.to_flat_state(abstract):
        ours = ".".join(map(str, path))
        names, kernel = layout.sources(ours)
        absent = [name for name in names if name not in source]
        filled.used.update(names)
        if absent:
            filled.missing += absent
            continue
        parts = [np.asarray(source[name].read(), np.float32) for name in names]
        if ours.endswith(".kernel"):
            parts = [kernel.convert(part) for part in parts]
        filled.problems += _value_problems(ours, names, parts, tuple(leaf.shape))
        if len({part.shape[:-1] for part in parts}) == 1:
            filled.weights[ours] = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return filled


def map_checkpoint(source: Source, fusion: bool | None = None) -> Mapped:
    """`map_branch` of the audio tower in a checkpoint's tensors."""
    return map_branch(find_branch(source), fusion)


def map_branch(branch: Branch, fusion: bool | None = None) -> Mapped:
    """Maps an audio tower onto our parameters, strictly in both directions.

    Args:
        branch: its tensors, read lazily.
        fusion: what the caller knows about feature fusion; None = what the file holds.

    Raises:
        UserError: a parameter is missing, a tensor unused, a shape, a value or a stored filter
            wrong; lists all of them.
    """
    layout, source, root = branch.layout, branch.source, branch.root
    config = find_config(layout, source, fusion)
    filled = fill(layout, source, abstract_model(config)[1])
    rest = [key for key in source if key not in filled.used]
    ignored = [key for key in rest if layout.is_ignored(key)]
    checked, unexpected = [], []
    for key in rest:
        if not layout.is_ignored(key):
            (checked if is_recomputed(layout, key) else unexpected).append(key)
    problems = [*filled.problems, *constant_problems(layout, source, checked, config)]
    front_end = find_front_end(layout, source, config)
    _refuse(root, filled.missing, unexpected, problems + front_end.problems, config)
    return Mapped(
        layout,
        config,
        filled.weights,
        front_end.config,
        [root + key for key in ignored] + branch.elsewhere,
        branch.notes + front_end.notes,
        front_end.assumptions,
    )


def _refuse(
    root: str, missing: list[str], unexpected: list[str], problems: list[str], config: HtsatConfig
) -> None:
    parts = []
    if missing:
        parts.append(f"missing in the file: {', '.join(missing)}")
    if unexpected:
        parts.append(f"in the file but not used: {', '.join(unexpected)}")
    parts += problems
    if not parts:
        return
    if config.fusion and missing and all(".mel_conv2d." in n or "fusion" in n for n in missing):
        parts.append(
            "these are the weights of feature fusion: the checkpoint was trained without it and "
            "cannot be used with it"
        )
    below = f" (names below {root!r})" if root else ""
    raise UserError(f"the checkpoint does not fit HTS-AT{below}: {'; '.join(parts)}")


def _value_problems(
    ours: str, names: tuple[str, ...], parts: list[np.ndarray], wanted: tuple[int, ...]
) -> Iterable[str]:
    part_shape = (*wanted[:-1], wanted[-1] // len(parts))
    for name, part in zip(names, parts, strict=True):
        if part.shape != part_shape:
            yield f"wrong shape: {name} gives {part.shape} for {ours}, which needs {part_shape}"
        elif not np.isfinite(part).all():
            yield f"not a number: {name} holds NaN or infinity"
        elif ours.endswith(".var") and part.min() < 0:
            yield f"impossible: {name} holds a negative variance"
