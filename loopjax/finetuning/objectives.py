"""What embeddings are trained for: losses of the rows of one batch.

Rows lie on several devices; a loss sees its own rows and, through `gather`, those of all devices.
It returns the sum over its own rows, so that the sum over devices is that of the batch. Shapes:
b rows of this device, B of all, v views, C the embedding's width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.config.finetuning import ObjectiveConfig

Arrays = dict[str, jax.Array]
Gather = Callable[[jax.Array], jax.Array]  # [b, ...] -> [B, ...]
EPS = 1e-12


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What losses know about rows beside their embeddings.

    Attributes:
        mask: bool [b], False where a loop could not be read.
        content: uint32 [b], equal for loops of equal content.
        label: int32 [b], the group; -1 = none.
        target: float32 [b, W], what to follow; W may be 0.
    """

    mask: jax.Array
    content: jax.Array
    label: jax.Array
    target: jax.Array


class Loss(Protocol):
    """One kind of loss."""

    def __call__(
        self, head: Arrays, constants: Arrays, z: jax.Array, rows: Rows, gather: Gather
    ) -> jax.Array:
        """Sum over this device's rows of embeddings z [v, b, C]; masked rows count nothing."""
        ...


@dataclass(frozen=True)
class Objective:
    """A loss with what belongs to it.

    Attributes:
        loss: computes it.
        n_views: views of each loop that it compares.
        head: first values of weights of its own, which train and are not exported.
        constants: what it compares embeddings with.
    """

    loss: Loss
    n_views: int
    head: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)


def make_objective(
    config: ObjectiveConfig,
    width: int,
    seed: int,
    *,
    start: np.ndarray | None = None,
    n_groups: int = 0,
    target_width: int = 0,
) -> Objective:
    """The objective of a configuration.

    Args:
        config: its kind and numbers.
        width: C.
        seed: of new weights.
        start: float32 [N, C], embeddings of the loops before training, for kinds with a center.
        n_groups: for `groups`.
        target_width: of the teacher's embeddings, for `distill`.
    """
    rng = np.random.default_rng([seed, 1])

    def random(n_in: int, n_out: int) -> np.ndarray:
        return (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(np.float32)

    if config.kind in ("contrastive", "mean-shifted"):
        head = {"project": random(width, config.projection)} if config.projection else {}
        constants = {}
        if config.kind == "mean-shifted":
            constants["center"] = _unit_rows(_require(start)).mean(axis=0)
        return Objective(partial(contrastive, temperature=config.temperature), 2, head, constants)
    if config.kind == "groups":
        centers = random(width, n_groups * config.sub_centers).T.copy()
        loss = partial(
            arc_face,
            n_groups=n_groups,
            margin=config.margin,
            scale=config.scale,
        )
        return Objective(loss, 1, {"centers": centers})
    if config.kind == "one-class":
        rows = _require(start).astype(np.float64)
        center = rows.mean(axis=0)
        spread = np.square(rows - center).sum(axis=1).mean()
        constants = {"center": center.astype(np.float32)}
        constants["spread"] = np.asarray(max(spread, EPS), np.float32)
        return Objective(one_class, 1, {}, constants)
    return Objective(distillation, 1, {"project": random(width, target_width)})


def contrastive(
    head: Arrays,
    constants: Arrays,
    z: jax.Array,
    rows: Rows,
    gather: Gather,
    *,
    temperature: float,
) -> jax.Array:
    """NT-Xent (Chen et al. 2020, arXiv 2002.05709): of all views, a view's twin is the nearest.

    With a center, directions are those around it (Reiss and Hoshen 2021, arXiv 2106.03844), so that
    the loss cannot be lowered by moving everything away from there. Loops of the same content are
    not held against each other.
    """
    z = unit(z)
    if "center" in constants:
        z = unit(z - constants["center"])
    if "project" in head:
        z = unit(z @ head["project"])
    everyone = jnp.stack([gather(view) for view in z])  # [2, B, C]
    content, mask = gather(rows.content), gather(rows.mask)
    total = jnp.zeros(())
    # A row of another content, or this very row's twin: all else in one's own content is left out.
    other = (rows.content[:, None] != content[None, :]) & mask[None, :]
    for view in (0, 1):
        twin = jnp.sum(z[view] * z[1 - view], axis=1) / temperature
        logits = jnp.einsum("bc,vnc->bvn", z[view], everyone) / temperature
        logits = jnp.where(other[:, None, :], logits, -jnp.inf).reshape(len(twin), -1)
        both = jnp.concatenate([twin[:, None], logits], axis=1)
        total += jnp.sum(jnp.where(rows.mask, jax.nn.logsumexp(both, axis=1) - twin, 0.0)) / 2
    return total


def arc_face(
    head: Arrays,
    constants: Arrays,
    z: jax.Array,
    rows: Rows,
    gather: Gather,
    *,
    n_groups: int,
    margin: float,
    scale: float,
) -> jax.Array:
    """Sub-center ArcFace (Deng et al. 2020): a loop is nearest one of its group's centers.

    The angle to its own group counts `margin` more than it is.
    """
    cosines = unit(z[0]) @ unit(head["centers"]).T
    cosines = cosines.reshape(len(cosines), n_groups, -1).max(axis=-1)
    own = jax.nn.one_hot(rows.label, n_groups, dtype=bool)  # nowhere for -1
    bounded = jnp.clip(cosines, -1.0 + 1e-6, 1.0 - 1e-6)
    # Beyond pi the cosine would rise again.
    moved = jnp.cos(jnp.minimum(jnp.arccos(bounded) + margin, jnp.pi))
    logits = scale * jnp.where(own, moved, cosines)
    per_row = jax.nn.logsumexp(logits, axis=1) - jnp.sum(jnp.where(own, logits, 0.0), axis=1)
    return jnp.sum(jnp.where(rows.mask & (rows.label >= 0), per_row, 0.0))


def one_class(
    head: Arrays, constants: Arrays, z: jax.Array, rows: Rows, gather: Gather
) -> jax.Array:
    """Deep SVDD (Ruff et al. 2018): squared distance to a fixed center, 1 on average at the start.

    Nothing in it keeps embeddings apart: give `objective.anchor`, and watch `min_spread`.
    """
    squared = jnp.square(z[0] - constants["center"]).sum(axis=1) / constants["spread"]
    return jnp.sum(jnp.where(rows.mask, squared, 0.0))


def distillation(
    head: Arrays, constants: Arrays, z: jax.Array, rows: Rows, gather: Gather
) -> jax.Array:
    """1 - cosine between a linear image of the embedding and the teacher's embedding."""
    cosine = jnp.sum(unit(z[0] @ head["project"]) * unit(rows.target), axis=1)
    return jnp.sum(jnp.where(rows.mask, 1.0 - cosine, 0.0))


def unit(x: jax.Array) -> jax.Array:
    """Rows of unit length, with a gradient of zero at the origin."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), EPS))


def _unit_rows(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.maximum(lengths, EPS)).astype(np.float32)


def _require(start: np.ndarray | None) -> np.ndarray:
    if start is None:
        raise ValueError("this objective needs embeddings of the loops before training")
    return start
