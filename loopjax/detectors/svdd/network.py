"""The autoencoders under Deep SVDD: Linear, BatchNorm, ELU and dropout blocks, plain or residual.

Source: paper section III-C; reference `models/layers.py` and `models/networks.py`. The last encoder
and the last decoder layer are bare linear maps. The reference finds "the last layer" by comparing
widths; here it is the last by position, which is the same unless a width repeats.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loopjax.detectors.rows import score_in_blocks
from loopjax.errors import ParameterError

HIDDEN_DIMS = {"exp1": (512, 256, 128), "exp2_deeper": (512, 256, 128, 64, 32)}
ACTIVATIONS = {
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.1),
}
# Parameters and statistics as flat dicts: "encoder/layers/0/linear/kernel" -> array.
Arrays = dict[str, Any]


@dataclass(frozen=True)
class NetworkConfig:
    """Shape and options of an autoencoder; hashable, so that compiled programs are reused.

    Attributes:
        n_features: width D of a row.
        hidden_dims: widths of the encoder's layers; the decoder mirrors them.
        residual: add the encoder blocks' outputs to the decoder blocks' (AEwRES).
        batch_norm: BatchNorm after every linear map but the last of encoder and decoder.
        shift: BatchNorm has a learned shift; without it and `bias` the zero map cannot be learned.
        bias: linear maps have biases.
        activation: key of `ACTIVATIONS`.
        dropout: probability of zeroing a unit, 0 for none.
        bfloat16: compute layers in bfloat16 (parameters and BatchNorm stay float32).
    """

    n_features: int
    hidden_dims: tuple[int, ...]
    residual: bool = False
    batch_norm: bool = True
    shift: bool = True
    bias: bool = False
    activation: str = "elu"
    dropout: float = 0.2
    bfloat16: bool = False

    def __post_init__(self):
        """Refuse impossible shapes and unknown activations."""
        if not self.hidden_dims or any(width < 1 for width in self.hidden_dims):
            raise ParameterError(f"hidden_dims must be widths >= 1; got {self.hidden_dims!r}")
        if self.activation not in ACTIVATIONS:
            raise ParameterError(f"activation: {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ParameterError(f"dropout must lie in [0, 1); got {self.dropout!r}")

    @property
    def dropout_widths(self) -> tuple[int, ...]:
        """Widths of the blocks that drop units, in the order of a reconstruction."""
        inner = self.hidden_dims[:-1]
        return inner + inner[::-1] if self.dropout else ()


class TrainingPass:
    """What one forward pass in training mode needs beyond the rows.

    Args:
        weights: [B], 1 for real rows and 0 for the padding of a short batch.
        keep: bool [B, sum of dropout widths], which units survive; read block after block.
        momentum: fraction of the batch in the running BatchNorm statistics.
    """

    def __init__(self, weights: jax.Array, keep: jax.Array | None, momentum: jax.Array | float):
        self.weights = weights
        self.momentum = momentum
        self._keep = keep
        self._used = 0

    def drop(self, x: jax.Array, rate: float) -> jax.Array:
        """Zero the units of [B, W] that the next W columns of `keep` leave out; rescale others."""
        if not rate:
            return x
        if self._keep is None:
            raise ValueError("dropout needs the `keep` columns of this pass")
        start, self._used = self._used, self._used + x.shape[1]
        kept = self._keep[:, start : self._used]
        return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))


class BatchNorm(nnx.Module):
    """PyTorch's BatchNorm1d (eps 1e-5): biased variance to normalize, unbiased to remember."""

    def __init__(self, width: int, *, shift: bool):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if shift else None
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: jax.Array, train: TrainingPass | None) -> jax.Array:
        """[B, W] -> [B, W] by the batch's statistics when training, else by the running ones."""
        if train is None:
            mean, var = self.mean[...], self.var[...]
        else:
            weights = train.weights[:, None]
            count = jnp.sum(weights)
            mean = jnp.sum(x * weights, axis=0) / count
            var = jnp.sum(weights * (x - mean[None, :]) ** 2, axis=0) / count
            unbiased = var * (count / jnp.maximum(count - 1.0, 1.0))
            self.mean[...] += train.momentum * (mean - self.mean[...])
            self.var[...] += train.momentum * (unbiased - self.var[...])
        gain = self.scale[...] * jax.lax.rsqrt(var + 1e-5)
        out = (x - mean[None, :]) * gain[None, :]
        return out if self.bias is None else out + self.bias[...][None, :]


@jax.custom_vjp
def _cpu_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Rows [B, n_in] @ kernel [n_in, n_out] whose backward pass suits XLA's CPU backend.

    Its products of a small batch run faster with both operands laid out in full beforehand: a
    training step takes 13 % less.
    """
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def _cpu_product_forward(x, kernel):
    return _cpu_product(x, kernel), (x, kernel)


def _cpu_product_backward(saved, gradient):
    x, kernel = saved
    by_unit, by_feature = jax.lax.optimization_barrier((gradient.T, x.T))
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    dx = jax.lax.optimization_barrier(product("io,ob->ib", kernel, by_unit)).T
    return dx, product("ib,ob->io", by_feature, by_unit)


_cpu_product.defvjp(_cpu_product_forward, _cpu_product_backward)


def _dot_general(x, kernel, dimension_numbers, **options):
    """`lax.dot_general` as `nnx.Linear` calls it on rows [B, n_in]."""
    if jax.default_backend() == "cpu" and x.ndim == 2:
        return _cpu_product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)


class Block(nnx.Module):
    """Linear map, then BatchNorm, activation and dropout unless `bare`."""

    def __init__(self, n_in: int, n_out: int, config: NetworkConfig, *, bare: bool, rngs: nnx.Rngs):
        self.linear = nnx.Linear(
            n_in,
            n_out,
            use_bias=config.bias,
            dtype=jnp.bfloat16 if config.bfloat16 else None,
            precision=jax.lax.Precision.HIGHEST,
            dot_general=_dot_general,
            rngs=rngs,
        )
        self.bn = BatchNorm(n_out, shift=config.shift) if config.batch_norm and not bare else None
        self.activation = None if bare else config.activation
        self.dropout = 0.0 if bare else config.dropout

    def __call__(self, x: jax.Array, train: TrainingPass | None) -> jax.Array:
        """[B, n_in] -> [B, n_out] float32."""
        x = self.linear(x).astype(jnp.float32)
        if self.bn is not None:
            x = self.bn(x, train)
        if self.activation is not None:
            x = ACTIVATIONS[self.activation](x)
        return x if train is None else train.drop(x, self.dropout)


class Encoder(nnx.Module):
    """Rows [B, D] to latents [B, Z]; the last layer is linear."""

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        widths = (config.n_features, *config.hidden_dims)
        last = len(config.hidden_dims) - 1
        self.layers = nnx.List(
            [
                Block(widths[i], widths[i + 1], config, bare=i == last, rngs=rngs)
                for i in range(last + 1)
            ]
        )

    def __call__(self, x: jax.Array, train: TrainingPass | None = None) -> jax.Array:
        """Latents [B, Z] of rows [B, D]."""
        for layer in self.layers:
            x = layer(x, train)
        return x


class Decoder(nnx.Module):
    """Latents [B, Z] back to rows [B, D]; the last layer is linear."""

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        widths = (*config.hidden_dims[::-1], config.n_features)
        last = len(widths) - 2
        self.layers = nnx.List(
            [
                Block(widths[i], widths[i + 1], config, bare=i == last, rngs=rngs)
                for i in range(last + 1)
            ]
        )


class Autoencoder(nnx.Module):
    """Encoder and decoder; `residual` adds encoder block L-2-j to decoder block j (AEwRES)."""

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.residual = config.residual

    def __call__(self, x: jax.Array, train: TrainingPass | None = None) -> jax.Array:
        """Reconstruction [B, D] of rows [B, D]."""
        skips = []
        for layer in self.encoder.layers[:-1]:
            x = layer(x, train)
            skips.append(x)
        x = self.encoder.layers[-1](x, train)
        for layer, skip in zip(self.decoder.layers[:-1], reversed(skips), strict=True):
            x = layer(x, train)
            if self.residual:
                x = x + skip
        return self.decoder.layers[-1](x, train)


@lru_cache(maxsize=64)
def skeleton(config: NetworkConfig) -> tuple[nnx.GraphDef, dict[str, nnx.Variable]]:
    """Structure of the autoencoder of a config, its leaves by path, without allocating any."""
    model = nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return graphdef, {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def build(config: NetworkConfig, params: Arrays, stats: Arrays) -> Autoencoder:
    """The autoencoder that holds these arrays."""
    graphdef, leaves = skeleton(config)
    arrays = params | stats
    flat = [(_path(name), leaf.replace(arrays[name])) for name, leaf in leaves.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def build_encoder(config: NetworkConfig, params: Arrays, stats: Arrays) -> Encoder:
    """The encoder alone, from arrays named "layers/0/linear/kernel" and so on."""
    graphdef, leaves = encoder_skeleton(config)
    arrays = params | stats
    flat = [(_path(name), leaf.replace(arrays[name])) for name, leaf in leaves.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


@lru_cache(maxsize=64)
def encoder_skeleton(config: NetworkConfig) -> tuple[nnx.GraphDef, dict[str, nnx.Variable]]:
    """Like `skeleton`, of the encoder alone."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))))
    return graphdef, {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def statistics(model: nnx.Module) -> Arrays:
    """The BatchNorm statistics of a module by path."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    return {"/".join(map(str, path)): leaf[...] for path, leaf in flat}


def encoder_part(arrays: Arrays) -> Arrays:
    """The encoder's arrays of an autoencoder, renamed to start at "layers/"."""
    prefix = "encoder/"
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def is_statistic(name: str) -> bool:
    """Whether an array of this name is a running BatchNorm statistic, not a parameter."""
    return name.endswith(("/bn/mean", "/bn/var"))


def initialize(
    config: NetworkConfig, rng: np.random.Generator, bn_scale: float = 1.0
) -> tuple[Arrays, Arrays]:
    """Fresh parameters and statistics as float32, distributed like PyTorch's defaults.

    Kernels and biases are uniform in +-1/sqrt(fan_in); BatchNorm starts as the identity, or with
    scale `bn_scale`.
    """
    _, leaves = skeleton(config)
    params: Arrays = {}
    stats: Arrays = {}
    for name, leaf in sorted(leaves.items()):
        shape = leaf.shape
        if "/linear/" in name:
            fan_in = leaves[name.rsplit("/", 1)[0] + "/kernel"].shape[0]
            bound = fan_in**-0.5
            params[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        else:
            first = {"scale": bn_scale, "bias": 0.0, "mean": 0.0, "var": 1.0}[name.split("/")[-1]]
            target = stats if is_statistic(name) else params
            target[name] = np.full(shape, first, np.float32)
    return params, stats


def encode_rows(network: NetworkConfig, arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    """Latents [N, Z] float32 of rows [N, D], in evaluation mode."""
    arrays = {name: jnp.asarray(a) for name, a in arrays.items()}
    return score_in_blocks(lambda block: _encode(block, arrays, network=network), rows)


@partial(jax.jit, static_argnames="network")
def _encode(rows: jax.Array, arrays: Arrays, *, network: NetworkConfig) -> jax.Array:
    return build_encoder(network, arrays, {})(rows)


def check_encoder_arrays(network: NetworkConfig, arrays: Arrays) -> None:
    """Raise `ParameterError` listing missing, unknown and misshapen arrays of an encoder."""
    expected = {name: leaf.shape for name, leaf in encoder_skeleton(network)[1].items()}
    missing = sorted(expected.keys() - arrays.keys())
    unknown = sorted(arrays.keys() - expected.keys())
    shapes = [
        f"{name} {arrays[name].shape}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in arrays and arrays[name].shape != shape
    ]
    if missing or unknown or shapes:
        raise ParameterError(
            f"encoder arrays: missing {missing or 'none'}, unknown {unknown or 'none'}, "
            f"wrong shape {shapes or 'none'}"
        )


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("/"))
