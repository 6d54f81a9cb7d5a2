"""An encoder ready for use: architecture, front end and weights behind two compiled programs."""

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from loopjax.encoders.space import Precision
from loopjax.errors import UserError
from loopjax.forks import refuse_after_fork
from loopjax.htsat.frontend import DEVICE_RATES_HZ, LogMelConfig
from loopjax.htsat.fusion import crop_starts as default_crop_starts
from loopjax.htsat.fusion import front_end, prepare_lengths, waveform_starts
from loopjax.htsat.kernels import kernels_available
from loopjax.htsat.model import Htsat, HtsatConfig
from loopjax.notebook import html_facts

FUSION_VIEWS = 4
# Left to itself XLA's autotuner gives products to Triton or plain cuBLAS, and bias and GELU become
# passes of their own over memory: on an H100 a quarter of tiny's time in kernels.
GPU_COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@lru_cache(maxsize=16)
def abstract_model(config: HtsatConfig, precision: Precision = "fp32") -> tuple[Any, Any]:
    """The model's graph and shapes, (graphdef, abstract state), without allocating weights."""
    dtype = jnp.float32 if precision in ("fp32", "tf32") else jnp.bfloat16
    kernels = precision == "bf16-fused" and kernels_available()
    if precision == "bf16-fused" and not kernels:
        warnings.warn(
            f"jax {jax.__version__} has no kernels for this device: bf16-fused runs as "
            "bf16-fast, slower and with the same embeddings up to rounding",
            stacklevel=2,
        )

    def build() -> Htsat:
        model = Htsat(config, dtype=dtype, rngs=nnx.Rngs(0))
        model.eval()
        for stage in model.stages:
            for block in stage.blocks:
                block.mlp.tanh = precision in ("bf16-fast", "bf16-fused")
                block.fused = kernels
        return model

    return nnx.split(nnx.eval_shape(build))


def random_weights(config: HtsatConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Freshly initialized weights by flat name: the untrained reference encoder."""
    model = Htsat(config, rngs=nnx.Rngs(seed))
    return flatten_state(nnx.state(model))


def flatten_state(state: Any) -> dict[str, np.ndarray]:
    """Model state -> {'stages.0.blocks.1.attn.qkv.kernel': array}; random streams left out."""
    flat = nnx.to_flat_state(state)
    return {
        ".".join(map(str, path)): np.asarray(leaf[...])
        for path, leaf in flat
        if not isinstance(leaf, nnx.RngState)
    }


def weights_digest(weights: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and float32 bytes, independent of how they were stored."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], np.float32)
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# One cache for all encoders: front ends that are alike are compiled once.
@partial(jax.jit, static_argnames=("rate_hz", "config", "fusion", "mesh"))
def split_front_end(
    samples: jax.Array,
    signal_samples: jax.Array,
    length_samples: jax.Array,
    starts: jax.Array,
    *,
    rate_hz: int,
    config: LogMelConfig,
    fusion: bool,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`htsat.fusion.front_end`, each device of a mesh working on its own rows.

    Left to itself, XLA gathers the whole batch on every device.
    """
    run = partial(front_end, rate_hz=rate_hz, config=config, fusion=fusion)
    if mesh is not None:
        split = PartitionSpec(*mesh.axis_names)
        run = jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    return run(samples, signal_samples, length_samples, starts)


class HtsatEncoder:
    """Samples in, embeddings out; both steps are compiled once per shape.

    `front_end` runs once per bucket and sample rate, `encode` once per batch size; neither result
    depends on a clip's batch mates.
    """

    def __init__(
        self,
        config: HtsatConfig,
        mel_config: LogMelConfig,
        weights: dict[str, np.ndarray],
        *,
        encoder_id: str,
        precision: Precision = "fp32",
        weights_sha256: str | None = None,
        location: str | None = None,
        assumptions: tuple[str, ...] = (),
    ):
        """Binds weights (flat names, as `flatten_state`) to an architecture.

        Args:
            config: the architecture.
            mel_config: the front end.
            weights: float32 arrays.
            encoder_id: the name that stores of embeddings record.
            precision: number format of the network.
            weights_sha256: digest of the weights, where it is known already.
            location: what `load_encoder` finds this encoder by.
            assumptions: what about the front end its checkpoint did not say.

        Raises:
            ValueError: a name or shape does not fit the architecture; lists them.
        """
        self.config, self.mel_config = config, mel_config
        self.id, self.location, self.assumptions = encoder_id, location, assumptions
        self.precision: Precision = precision
        self.weights_sha256 = weights_sha256 or weights_digest(weights)
        self._graphdef, abstract = abstract_model(config, precision)
        self.params = fill_state(abstract, weights, precision)
        self._mesh: Mesh | None = None
        options = GPU_COMPILER_OPTIONS if jax.default_backend() == "gpu" else None
        self._encode = jax.jit(self.apply, static_argnames="mesh", compiler_options=options)
        self._outputs = jax.jit(partial(self._apply, everything=True), compiler_options=options)

    def _repr_html_(self) -> str:
        """What the encoder is, for notebooks."""
        facts = {
            "embedding": f"{self.embedding_dim} numbers",
            "clip": f"{self.clip_samples / self.sample_rate_hz:g} s at {self.sample_rate_hz} Hz",
            "longer clips": "fused" if self.fusion else "cropped",
            "precision": self.precision,
            "weights": self.weights_sha256[:16],
            "assumed": "; ".join(self.assumptions),
        }
        return html_facts(f"Encoder {self.id}", facts)

    @property
    def sample_rate_hz(self) -> int:
        """Rate at which the front end works."""
        return self.mel_config.sample_rate_hz

    @property
    def clip_samples(self) -> int:
        """Samples of one clip; longer audio goes through the fusion views (or is cropped)."""
        return self.mel_config.clip_samples

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding."""
        return self.config.embedding_dim

    @property
    def joint_dim(self) -> int | None:
        """Width of the space that sounds share with texts; None without such a projection."""
        config = self.config
        return config.projection_dim if config.projection_kind == "clap" else None

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [N, C] into the joint space of sounds and texts.

        NumPy does it, so that the device goes on with the next batches.

        Returns:
            float32 [N, joint_dim] of unit length.

        Raises:
            UserError: the encoder has no such space.
        """
        if self.joint_dim is None:
            raise UserError(f"encoder {self.id} has no projection into a space of sounds and texts")
        fc1, fc2 = (
            [np.asarray(self.params["projection"][name][leaf][...], np.float32)
             for leaf in ("kernel", "bias")]
            for name in ("fc1", "fc2")
        )  # fmt: skip
        hidden = np.maximum(np.asarray(embeddings, np.float32) @ fc1[0] + fc1[1], 0)
        joint = hidden @ fc2[0] + fc2[1]
        lengths = np.linalg.norm(joint, axis=1, keepdims=True)
        return joint / np.maximum(lengths, 1e-12)

    @property
    def fusion(self) -> bool:
        """Whether long clips are fused from four views."""
        return self.config.fusion

    @property
    def mel_shape(self) -> tuple[int, int, int]:
        """Features of one clip: (views, frames, mel bins)."""
        views = FUSION_VIEWS if self.fusion else 1
        return views, self.mel_config.clip_frames, self.mel_config.mel_bins

    @property
    def device_rates_hz(self) -> tuple[int, ...]:
        """Sample rates that the front end resamples itself."""
        return tuple(sorted({*DEVICE_RATES_HZ, self.sample_rate_hz}))

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by flat name, float32; kernels of a bf16 encoder are rounded already."""
        return {
            name: value.astype(np.float32) for name, value in flatten_state(self.params).items()
        }

    def replicate(self, mesh: Mesh) -> Self:
        """Copies the weights to every device of a one-axis mesh; batches split along that axis."""
        replicated = copy.copy(self)
        replicated._mesh = mesh
        replicated.params = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        return replicated

    def front_end(
        self,
        samples: np.ndarray | jax.Array,
        length_samples: np.ndarray,
        sample_rate_hz: int = 48000,
        crop_fractions: np.ndarray | None = None,
        crop_starts: np.ndarray | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Bucketed samples -> mel views.

        Args:
            samples: int16 or float32 [B, L] mono, or [B, L, channels], zero past the real end.
            length_samples: int [B], real samples per row; 0 marks an empty row.
            sample_rate_hz: rate of `samples`, one of `frontend.DEVICE_RATES_HZ`.
            crop_fractions: float [B, 3] in [0, 1), crop positions within each third.
            crop_starts: int [B, 3], crop positions in frames (overrides fractions; for parity).

        Returns:
            mel float32 [B, views, clip_frames, mel_bins], longer bool [B].
        """
        refuse_after_fork()
        signal, lengths = prepare_lengths(length_samples, sample_rate_hz, self.mel_config)
        if crop_starts is None:
            if self.fusion:
                crop_starts = default_crop_starts(lengths, self.mel_config, crop_fractions)
            else:
                crop_starts = waveform_starts(lengths, self.mel_config, crop_fractions)
        arrays = (samples, signal, lengths, np.asarray(crop_starts, np.int32))
        if self._mesh is not None:
            split = NamedSharding(self._mesh, PartitionSpec(*self._mesh.axis_names))
            arrays = jax.device_put(arrays, split)
        return split_front_end(
            *arrays,
            rate_hz=sample_rate_hz,
            config=self.mel_config,
            fusion=self.fusion,
            mesh=self._mesh,
        )

    def encode(self, mel: jax.Array, longer: jax.Array | None) -> jax.Array:
        """Mel views -> embeddings, float32 [B, embedding_dim]; not normalized.

        Args:
            mel: from `front_end`.
            longer: from `front_end`; None where no row is longer than a clip, which on an
                accelerator leaves the fusion's work out.
        """
        return self._encode(self.params, mel, longer, mesh=self._mesh)

    def outputs(self, mel: jax.Array, longer: jax.Array) -> dict[str, jax.Array]:
        """Mel views -> every output the weights have; see `Htsat.outputs`."""
        return self._outputs(self.params, mel, longer)

    def apply(
        self, params: Any, mel: jax.Array, longer: jax.Array | None, mesh: Mesh | None = None
    ) -> jax.Array:
        """What `encode` compiles, as a pure function of the weights.

        On a mesh every device runs the program of one: XLA could not split the attention kernel.
        """
        if mesh is None:
            return self._apply(params, mel, longer)
        whole, split = PartitionSpec(), PartitionSpec(*mesh.axis_names)
        return jax.shard_map(
            self._apply,
            mesh=mesh,
            in_specs=(whole, split, split),
            out_specs=split,
            check_vma=False,
        )(params, mel, longer)

    def _apply(
        self, params: Any, mel: jax.Array, longer: jax.Array | None, everything: bool = False
    ):
        with matmul_precision(self.precision):
            model = nnx.merge(self._graphdef, params)
            return model.outputs(mel, longer) if everything else model(mel, longer)


@contextlib.contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Full float32 products for fp32: accelerators would silently use TF32 or bfloat16."""
    # A TPU has no TensorFloat-32; three bfloat16 passes stand for it.
    products = {"fp32": "highest", "tf32": "tensorfloat32"}.get(precision)
    with jax.default_matmul_precision(products) if products else contextlib.nullcontext():
        yield


def fill_state(
    abstract: Any, weights: Mapping[str, np.ndarray | jax.Array], precision: Precision
) -> Any:
    """A model's state with these weights, by flat name, in the places of its shapes.

    What a layer would round to bfloat16 is rounded here, once.

    Raises:
        ValueError: a name or shape does not fit; lists them.
    """
    flat = nnx.to_flat_state(abstract)
    wanted = {".".join(map(str, path)): leaf for path, leaf in flat}
    missing = sorted(set(wanted) - set(weights))
    unused = sorted(set(weights) - set(wanted))
    shapes = [
        f"{name}: {weights[name].shape} instead of {leaf.shape}"
        for name, leaf in wanted.items()
        if name in weights and weights[name].shape != leaf.shape
    ]
    if missing or unused or shapes:
        raise ValueError(
            f"weights do not fit: missing {missing or 'none'}; unused {unused or 'none'}; "
            f"wrong shape {shapes or 'none'}"
        )

    def held(name: str) -> jax.Array:
        # Linear layers multiply in the network's type; norms and position biases in float32.
        linear = f"{name.rpartition('.')[0]}.kernel" in wanted
        narrow = linear and precision.startswith("bf16")
        return jnp.asarray(weights[name], jnp.bfloat16 if narrow else jnp.float32)

    return nnx.from_flat_state(
        [(path, leaf.replace(held(".".join(map(str, path))))) for path, leaf in flat]
    )
