"""Training of many-sphere Deep SVDD: a residual map that draws every ball onto its own center.

Each training row is the center of a ball whose radius is the distance to its nearest others. The
map starts as the identity and is trained so that points drawn from a ball land near the ball's
center. Centers and radii are fixed before training, so nothing can collapse into one point.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from loopjax.training.checkpoints import Checkpoints
from loopjax.training.keys import derive, mix32, new_key

FIRST_LAYER_SD = 2.0
_ROWS_MULTIPLE, _WIDTH_MULTIPLE = 128, 64  # sizes are rounded up, so that programs recur
_POSITIONS_PER_ROW = 1 << 16


class ResidualMap(NamedTuple):
    """x -> x + x L + W2 gelu(W1 x + b) / sqrt(H); the leading axis of heads may be there or not.

    Attributes:
        linear: L [K, K], zero at the start.
        kernel: W1 [K, H]. bias: b [H].
        output: W2 [H, K], zero at the start.
    """

    linear: jax.Array
    kernel: jax.Array
    bias: jax.Array
    output: jax.Array


@dataclass(frozen=True)
class SphereRecipe:
    """How a residual map is trained: `steps` of AdamW, learning rate on a cosine down to 0.

    A step sees all centers, or `batch_size` of them drawn at random where there are more; so the
    work does not grow with the corpus.
    """

    steps: int = 100
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    hidden_width: int = 256

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with the schedule of this recipe."""
        schedule = optax.cosine_decay_schedule(self.learning_rate, max(self.steps, 1))
        return optax.adamw(schedule, weight_decay=self.weight_decay)


class Balls(NamedTuple):
    """The balls of one head, or of several with a leading axis [H].

    Attributes:
        centers: float32 [M, K], zero-padded.
        radii: float32 [M], ones where padded.
        n_centers: how many centers are real.
        width: how many columns are real.
        key: uint32 [2], of the noise and of the batches.
    """

    centers: jax.Array
    radii: jax.Array
    n_centers: jax.Array
    width: jax.Array
    key: jax.Array


class MapState(NamedTuple):
    """A training in progress; saved as it is."""

    params: ResidualMap
    optimizer: optax.OptState
    step: jax.Array
    losses: jax.Array  # [steps], NaN where not reached


def initial_map(width: int, hidden_width: int, seed: int) -> ResidualMap:
    """The identity, with a random first layer."""
    rng = np.random.default_rng([seed, 2])
    return ResidualMap(
        linear=jnp.zeros((width, width), jnp.float32),
        kernel=jnp.asarray(rng.normal(0.0, FIRST_LAYER_SD, (width, hidden_width)), jnp.float32),
        bias=jnp.asarray(rng.uniform(-1.0, 1.0, hidden_width), jnp.float32),
        output=jnp.zeros((hidden_width, width), jnp.float32),
    )


def apply_map(params: ResidualMap, points: jax.Array) -> jax.Array:
    """Points [B, K] where the map takes them."""
    hidden = jax.nn.gelu(points @ params.kernel + params.bias, approximate=False)
    return points + points @ params.linear + hidden @ params.output / np.sqrt(hidden.shape[-1])


def train_maps(
    centers: list[np.ndarray],
    radii: list[np.ndarray],
    seeds: list[int],
    recipe: SphereRecipe,
    *,
    checkpoints: Checkpoints | None = None,
    every_steps: int = 25,
) -> tuple[list[ResidualMap], np.ndarray]:
    """Trains one map per head, all heads in one program.

    Args:
        centers: per head, float32 [M, K]; sizes may differ.
        radii: per head, positive [M].
        seeds: per head, of first layer, noise and batches.
        recipe: the same for all.
        checkpoints: where a killed training goes on from, to the same maps.
        every_steps: how many steps a kill may cost.

    Returns:
        The maps, and the losses float32 [heads, steps].
    """
    rows = _rounded(max(map(len, centers)), _ROWS_MULTIPLE)
    width = _rounded(max(c.shape[1] for c in centers), _WIDTH_MULTIPLE)
    balls = _stack([
        _padded_balls(c, r, seed, rows, width)
        for c, r, seed in zip(centers, radii, seeds, strict=True)
    ])  # fmt: skip
    starts = [_start(initial_map(width, recipe.hidden_width, seed), recipe) for seed in seeds]
    state = _stack(starts)
    if checkpoints is not None:
        state = checkpoints.restore(state) or state
    while (done := int(state.step[0])) < recipe.steps:
        piece = (
            recipe.steps - done if checkpoints is None else min(every_steps, recipe.steps - done)
        )
        state = _advance(state, balls, recipe=recipe, steps=piece)
        if checkpoints is not None:
            checkpoints.save(done + piece, state)
    found = state.params
    maps = [
        ResidualMap(
            found.linear[h, :k, :k], found.kernel[h, :k], found.bias[h], found.output[h, :, :k]
        )
        for h, k in enumerate(c.shape[1] for c in centers)
    ]
    return maps, np.asarray(state.losses)


@partial(jax.jit, static_argnames=("recipe", "steps"), donate_argnames="state")
def _advance(state: MapState, balls: Balls, *, recipe: SphereRecipe, steps: int) -> MapState:
    """`steps` more steps of every head."""
    return jax.vmap(partial(_advance_one, recipe, steps))(state, balls)


def _advance_one(recipe: SphereRecipe, steps: int, state: MapState, balls: Balls) -> MapState:
    optimizer = recipe.optimizer()
    loss_and_gradients = jax.value_and_grad(_ball_loss)

    def step(state: MapState, _: None) -> tuple[MapState, None]:
        key = derive(balls.key, state.step)
        weights: Any = state.params
        loss, gradients = loss_and_gradients(weights, balls, key, recipe.batch_size)
        updates, moments = optimizer.update(gradients, state.optimizer, weights)
        params = jax.tree.map(jnp.add, state.params, updates)
        losses = state.losses.at[state.step].set(loss)
        return MapState(params, moments, state.step + 1, losses), None

    return jax.lax.scan(step, state, length=steps)[0]


def _ball_loss(params: ResidualMap, balls: Balls, key: jax.Array, batch_size: int) -> jax.Array:
    """Mean squared distance of mapped ball points to their centers, in units of the radius."""
    total, width = balls.centers.shape
    numbers = jnp.arange(total, dtype=jnp.uint32)
    if total > batch_size:
        draw = mix32(jnp.arange(batch_size, dtype=jnp.uint32) ^ key[1])
        numbers = draw % balls.n_centers.astype(jnp.uint32)
    real = numbers < balls.n_centers.astype(jnp.uint32)
    centers, radii = balls.centers[numbers], balls.radii[numbers]
    noise = _normal(key, numbers, width) * (jnp.arange(width) < balls.width)[None, :]
    points = centers + (radii / jnp.sqrt(balls.width))[:, None] * noise
    squared = jnp.sum((apply_map(params, points) - centers) ** 2, axis=1) / radii**2
    return jnp.sum(squared * real) / jnp.sum(real)


def _normal(key: jax.Array, numbers: jax.Array, width: int) -> jax.Array:
    """Gaussian noise [B, width] that depends on key, row number and column, not on padding."""
    columns = jnp.arange(width, dtype=jnp.uint32)
    positions = numbers[:, None] * jnp.uint32(_POSITIONS_PER_ROW) + columns[None, :]
    bits = mix32(mix32(positions ^ key[0]) ^ key[1])
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) / jnp.float32(1 << 23)
    return jnp.sqrt(jnp.float32(2.0)) * jax.lax.erf_inv(2.0 * uniform - 1.0)


def _padded_balls(
    centers: np.ndarray, radii: np.ndarray, seed: int, rows: int, width: int
) -> Balls:
    count, own_width = centers.shape
    return Balls(
        jnp.pad(centers, ((0, rows - count), (0, width - own_width))),
        jnp.pad(radii.astype(np.float32), (0, rows - count), constant_values=1.0),
        jnp.asarray(count, jnp.int32),
        jnp.asarray(own_width, jnp.int32),
        jnp.asarray(new_key(seed)),
    )


def _start(params: ResidualMap, recipe: SphereRecipe) -> MapState:
    weights: Any = params
    losses = jnp.full(recipe.steps, jnp.nan, jnp.float32)
    return MapState(params, recipe.optimizer().init(weights), jnp.asarray(0, jnp.int32), losses)


_Tree = TypeVar("_Tree", Balls, MapState)


def _stack(trees: list[_Tree]) -> _Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
