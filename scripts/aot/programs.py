"""What is compiled: encoders, front ends and head training, as the package runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.aot import targets  # first: it sets what jax reads when imported

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from loopjax.detectors.svdd.network import NetworkConfig, encoder_part, initialize
from loopjax.detectors.svdd.objectives import OneClass, Reconstruction
from loopjax.encoders.encoder import HtsatEncoder, random_weights, split_front_end
from loopjax.encoders.space import Precision
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from loopjax.training import loop, steps
from loopjax.training.recipe import Hyperparams, Recipe

SIZES = {
    "tiny": HtsatConfig.tiny(n_classes=None, projection_dim=None),
    "base": HtsatConfig.base(n_classes=None, projection_dim=None),
    "nano": HtsatConfig.nano(),
}
ROWS, WIDTH = 2000, 1024  # of the embeddings that heads train on


@dataclass(frozen=True)
class Program:
    """One program for one target.

    Attributes:
        name: of its line in the table.
        target: one of `targets.PLATFORMS`.
        clips: that one run works on; heads count steps instead, one.
        compile: lowers and compiles it.
    """

    name: str
    target: str
    clips: int
    compile: Callable[[], Any]


def programs() -> list[Program]:
    """Every line of the table, in its order."""
    found = []
    for size in SIZES:
        for precision in ("bf16", "bf16-fast", "bf16-fused"):
            found.append(_encoder("h100", size, precision, 128))
    found.append(_encoder("h100", "nano", "bf16-fused", 128, long_clips=True))
    found.append(_encoder("h100", "tiny", "fp32", 128))
    found.append(_encoder("h100", "tiny", "tf32", 128))
    found.append(_encoder("h100x8", "tiny", "bf16-fused", 1024))
    for target, batch in (("h100", 128), ("h100x8", 128)):
        found.append(_front_end(target, 44100, 4, batch, fusion=False))
        found.append(_front_end(target, 48000, 20, batch // 2, fusion=True))
    for objective in (Reconstruction, OneClass):
        found.append(_heads("h100", objective, heads=10, batch=32))
    for size in ("nano", "tiny"):
        for precision in ("bf16", "bf16-fused"):
            found.append(_encoder("v5e", size, precision, 64))
    found.append(_encoder("v5e", "base", "bf16-fused", 64))
    found.append(_front_end("v5e", 44100, 4, 64, fusion=False))
    return found


def _encoder(
    target: str, size: str, precision: Precision, batch: int, *, long_clips: bool = False
) -> Program:
    """An encoder; with `long_clips` the program for batches in which clips are fused."""

    def compile_() -> Any:
        place = _Place(target)
        config = SIZES[size]
        weights = random_weights(config)
        encoder = HtsatEncoder(
            config, LogMelConfig(), weights, encoder_id=size, precision=precision
        )
        params = jax.tree.map(lambda x: place.whole(x.shape, x.dtype), encoder.params)
        mel = place.split((batch, config.views, 1001, 64), jnp.float32)
        longer = place.split((batch,), jnp.bool_) if long_clips else None
        return place.compile(partial(encoder.apply, mesh=place.mesh), params, mel, longer)

    name = f"encoder {size} {precision}" + ", long clips" * long_clips
    return Program(name, target, batch, compile_)


def _front_end(target: str, rate_hz: int, seconds: int, batch: int, *, fusion: bool) -> Program:
    def compile_() -> Any:
        place = _Place(target)
        run = partial(
            split_front_end, rate_hz=rate_hz, config=LogMelConfig(), fusion=fusion, mesh=place.mesh
        )
        samples = place.split((batch, rate_hz * seconds), jnp.int16)
        lengths = place.split((batch,), jnp.int32)
        starts = place.split((batch, 3 if fusion else 1), jnp.int32)
        return place.compile(run, samples, lengths, lengths, starts)

    return Program(f"front end {seconds} s at {rate_hz} Hz", target, batch, compile_)


def _heads(target: str, objective: type, *, heads: int, batch: int) -> Program:
    def compile_() -> Any:
        place = _Place(target)
        network = NetworkConfig(WIDTH, (512, 256, 128))
        starts = []
        for seed in range(heads):
            arrays, extra = initialize(network, np.random.default_rng(seed)), {}
            if objective is OneClass:
                arrays = tuple(encoder_part(part) for part in arrays)
                extra = {"center": np.full(128, 0.1, np.float32)}
            starts.append(steps.start(*arrays, extra, seed))
        rows = np.arange(ROWS)
        split = loop.pad_split([rows] * heads, [rows[:100]] * heads, batch)
        rates = (1e-5, 5e-6, 1000, 1e-5)
        hyper = Hyperparams(
            *(np.full(heads, value, np.float32) for value in rates),
            *(np.full(heads, 10, np.int32) for _ in range(2)),
        )
        state, split, hyper = jax.tree.map(
            lambda x: place.whole(np.shape(x), np.asarray(x).dtype),
            (loop.stack(starts), split, hyper),
        )
        recipe = Recipe(objective(network), batch)
        own = loop.loop_steps(recipe, np.array([ROWS]))
        run = partial(steps.advance, recipe=recipe, epochs=1, loop_steps=own)
        matrix = place.whole((2048, WIDTH), jnp.float32)
        return place.compile(run, state, matrix, split, hyper)

    return Program(f"heads {objective.__name__} {heads} x {batch}", target, 1, compile_)


class _Place:
    """Shapes on the devices of a target, and the compiler for them."""

    def __init__(self, target: str):
        self.target, self.devices = target, targets.devices(target)
        self.mesh = None
        if len(self.devices) > 1:
            self.mesh = Mesh(np.array(self.devices), ("data",), axis_types=(AxisType.Auto,))

    def whole(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """An array that every device holds."""
        return self._array(shape, dtype, PartitionSpec())

    def split(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """An array whose rows are spread over the devices."""
        return self._array(shape, dtype, PartitionSpec("data"))

    def _array(self, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            sharding = SingleDeviceSharding(self.devices[0])
        else:
            sharding = NamedSharding(self.mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def compile(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """The optimized program of a function of these arrays."""
        with targets.as_if_on(self.target, self.devices[0]):
            traced = jax.jit(run).trace(*arguments)
            platform = targets.PLATFORMS[self.target]
            return traced.lower(lowering_platforms=(platform,)).compile()
