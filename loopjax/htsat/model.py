"""HTS-AT, the hierarchical token-semantic audio transformer, with the AFF-2D fusion branch.

After Chen et al. 2022 (arXiv 2202.00874) and its CLAP variant (Wu et al. 2023, arXiv 2211.06687;
LAION-CLAP `clap_module/htsat.py`). Shapes: B clips, V views (4 with fusion, else 1), T mel frames,
N tokens, D width of stage 0, C = width of the last stage. Images lie as rows = mel, columns = time.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loopjax.htsat.frontend import cubic_weights
from loopjax.htsat.swin import PatchMerging, SwinBlock, gelu, layer_norm, linear


@dataclass(frozen=True)
class HtsatConfig:
    """Architecture of one tower; the named sizes are the published ones and the bundled nano."""

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    patch: int = 4
    window: int = 8
    mlp_ratio: int = 4
    image_side: int = 256
    mel_bins: int = 64
    fusion: bool = False
    n_classes: int | None = 527  # None: no token-semantic head (Hugging Face files carry none)
    projection_dim: int | None = 512
    projection_hidden: int = 512
    projection_kind: Literal["clap", "msclap"] = "clap"
    drop_path: float = 0.1  # training only

    @classmethod
    def tiny(cls, **changes: Any) -> "HtsatConfig":
        """HTSAT-tiny: 768-wide embeddings (630k checkpoints, clap-htsat-fused/unfused)."""
        return cls(**changes)

    @classmethod
    def base(cls, **changes: Any) -> "HtsatConfig":
        """HTSAT-base: 1024-wide embeddings (music_audioset, larger_clap_music)."""
        sizes: dict[str, Any] = {"width": 128, "depths": (2, 2, 12, 2)}
        return cls(**(sizes | changes))

    @classmethod
    def nano(cls, **changes: Any) -> "HtsatConfig":
        """The bundled encoder: 8 x 8 patches and three stages, a 30th of tiny's arithmetic."""
        sizes: dict[str, Any] = {
            "width": 48,
            "depths": (1, 2, 3),
            "heads": (2, 4, 8),
            "patch": 8,
            "fusion": True,
            "n_classes": None,
            "projection_dim": None,
        }
        return cls(**(sizes | changes))

    @property
    def embedding_dim(self) -> int:
        """C, the width of the embedding."""
        return self.width * 2 ** (len(self.depths) - 1)

    @property
    def quarters(self) -> int:
        """How many pieces of the time axis are stacked to make the image square."""
        return self.image_side // self.mel_bins

    @property
    def image_frames(self) -> int:
        """Mel frames after the bicubic stretch: 1024."""
        return self.image_side * self.quarters

    @property
    def grid(self) -> int:
        """Tokens along each side of stage 0."""
        return self.image_side // self.patch

    @property
    def views(self) -> int:
        """Mel views per clip: the global one and three crops with fusion."""
        return 4 if self.fusion else 1


def bicubic_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Source rows and weights, [n_out, 4] each, of torch's bicubic with align_corners=True.

    Positions are rounded to float32 as torch rounds them; on noisy frames that is worth 1e-3.
    """
    scale = np.float32(n_in - 1) / np.float32(n_out - 1)
    position = np.arange(n_out, dtype=np.float32) * scale
    floor = np.floor(position)
    rows = floor.astype(np.int64)[:, None] + np.arange(-1, 3)
    weights = cubic_weights((position - floor).astype(np.float64))
    return np.clip(rows, 0, n_in - 1), weights.astype(np.float32)


def stretch_time(mel: jax.Array, n_out: int) -> jax.Array:
    """Bicubic stretch of [..., T, mel_bins] to n_out frames, as HTS-AT's `reshape_wav2img`.

    Raises:
        ValueError: more frames than n_out; the original asserts the same.
    """
    n_in = mel.shape[-2]
    if n_in == n_out:
        return mel
    if n_in > n_out:
        raise ValueError(
            f"{n_in} mel frames do not fit the image's {n_out}; crop or fuse them first"
        )
    rows, weights = bicubic_taps(n_in, n_out)
    taps = [mel[..., rows[:, k], :] * weights[:, k, None] for k in range(4)]
    return sum(taps[1:], taps[0])


class AffBranch(nnx.Module):
    """One attention path of AFF-2D: 1x1 conv, BatchNorm, ReLU, 1x1 conv, BatchNorm."""

    def __init__(self, width: int, dtype, *, rngs: nnx.Rngs):
        self.conv1 = linear(width, width // 4, dtype, rngs)
        self.bn1 = nnx.BatchNorm(width // 4, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.conv2 = linear(width // 4, width, dtype, rngs)
        self.bn2 = nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, N, D] -> same; `mask` picks the rows of BatchNorm's training statistics."""
        x = jax.nn.relu(self.bn1(self.conv1(x), mask=mask))
        return self.bn2(self.conv2(x), mask=mask)


class Aff(nnx.Module):
    """Attentional feature fusion of the global and the local map (Dai et al. 2021, AFF-2D)."""

    def __init__(self, width: int, dtype, *, rngs: nnx.Rngs):
        self.local_path = AffBranch(width, dtype, rngs=rngs)
        self.global_path = AffBranch(width, dtype, rngs=rngs)

    def __call__(self, whole: jax.Array, local: jax.Array, longer: jax.Array) -> jax.Array:
        """Fuses maps [B, N, D]; `longer` bool [B] restricts BatchNorm's training statistics."""
        x = whole + local
        mask = longer[:, None, None]
        attention = self.local_path(x, mask) + self.global_path(x.mean(1, keepdims=True), mask)
        weight = jax.nn.sigmoid(attention)
        return 2 * whole * weight + 2 * local * (1 - weight)


class PatchEmbed(nnx.Module):
    """Patches of the folded spectrogram; long clips mix three local crops in through AFF."""

    def __init__(self, config: HtsatConfig, dtype, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        area = config.patch**2
        self.proj = linear(area, config.width, dtype, rngs)
        self.norm = layer_norm(config.width, dtype, rngs)
        if config.fusion:
            self.mel_conv = linear(3 * area, config.width, dtype, rngs)
            self.aff = Aff(config.width, dtype, rngs=rngs)

    def _patches(self, frames: jax.Array, columns: int) -> jax.Array:
        """[B, image_frames, mel] -> [B, rows, columns per row, patch * patch columns]."""
        c = self.config
        b, width = frames.shape[0], columns * (c.image_side // columns)
        x = frames.reshape(b, c.quarters, c.image_side, c.mel_bins)[:, :, :width]
        x = x.reshape(b, c.quarters, -1, columns, c.mel_bins // c.patch, c.patch)
        x = x.transpose(0, 1, 4, 2, 5, 3)  # kernels are [mel, time]
        return x.reshape(b, c.grid, -1, c.patch * columns).astype(self.dtype)

    def _local(self, crops: jax.Array) -> jax.Array:
        """Three crops [B, 3, image_frames, mel] -> one map [B, N, D], zero column at the right."""
        c, b = self.config, crops.shape[0]
        frames = crops.reshape(b * 3, c.image_frames, c.mel_bins)
        x = self.mel_conv(self._patches(frames, 3 * c.patch))
        x = x.reshape(b, 3, c.grid, -1, c.width).swapaxes(1, 2).reshape(b, c.grid, -1, c.width)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, c.grid - x.shape[2]), (0, 0)))
        return x.reshape(b, -1, c.width)

    def __call__(self, views: jax.Array, longer: jax.Array | None) -> jax.Array:
        """Normalized mel views [B, V, T, mel] -> tokens [B, N, D]; `longer` None = no long clip."""
        c = self.config
        whole = stretch_time(views[:, 0], c.image_frames)
        x = self.proj(self._patches(whole, c.patch)).reshape(views.shape[0], -1, c.width)
        if c.fusion and longer is not None:

            def fuse() -> jax.Array:
                local = self._local(stretch_time(views[:, 1:], c.image_frames))
                return jnp.where(longer[:, None, None], self.aff(x, local, longer), x)

            # On a CPU a batch of short clips, the common case, skips the branch. A GPU would make
            # the host wait to learn what is in the batch: there the caller says so with None.
            # Training always takes it: BatchNorm's statistics cannot change inside a conditional.
            training = not self.aff.local_path.bn1.use_running_average
            skips = jax.default_backend() == "cpu" and not training
            x = jax.lax.cond(longer.any(), fuse, lambda: x) if skips else fuse()
        return self.norm(x)


class Stage(nnx.Module):
    """Swin blocks on one grid, and the merge to the next.

    With `remat`, the backward pass computes each block again instead of keeping what is inside.
    """

    def __init__(
        self,
        index: int,
        config: HtsatConfig,
        rates: list[float],
        dtype,
        remat: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        width, side = config.width * 2**index, config.grid // 2**index
        self.blocks = nnx.List(
            SwinBlock(
                width,
                config.heads[index],
                side,
                j % 2 == 1,
                rate,
                config.window,
                config.mlp_ratio,
                dtype,
                rngs=rngs,
            )
            for j, rate in enumerate(rates)
        )
        last = index == len(config.depths) - 1
        self.merge = nnx.data(None if last else PatchMerging(width, dtype, rngs=rngs))
        self.remat = remat

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Tokens of this grid -> tokens of the next (the last stage keeps its grid)."""
        for j, block in enumerate(self.blocks):
            run = nnx.remat(type(block).__call__) if self.remat else type(block).__call__
            x = run(block, x, None if key is None else jax.random.fold_in(key, j))
        return x if self.merge is None else self.merge(x)


class Htsat(nnx.Module):
    """The audio tower: mel views in, embedding and token-semantic outputs out."""

    def __init__(
        self, config: HtsatConfig, *, dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        self.config, self.dtype = config, dtype
        self.bn0 = nnx.BatchNorm(config.mel_bins, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.patch_embed = PatchEmbed(config, dtype, rngs=rngs)
        rates = np.linspace(0.0, config.drop_path, sum(config.depths)).tolist()
        ends = np.cumsum(config.depths)
        self.stages = nnx.List(
            Stage(i, config, rates[end - depth : end], dtype, remat, rngs=rngs)
            for i, (depth, end) in enumerate(zip(config.depths, ends, strict=True))
        )
        c = config.embedding_dim
        self.norm = layer_norm(c, dtype, rngs)
        if config.n_classes is not None:
            kernel = (self._bands, 3)
            pad = [(0, 0), (1, 1)]
            self.tscam = nnx.Conv(c, config.n_classes, kernel, padding=pad, dtype=dtype, rngs=rngs)
        if config.projection_dim is not None:
            self.projection = Projection(c, config, dtype, rngs=rngs)

    @property
    def _bands(self) -> int:
        """Token rows per quarter after the last stage: halves of the mel axis."""
        c = self.config
        return c.grid // 2 ** (len(c.depths) - 1) // c.quarters

    def latent(
        self,
        mel: jax.Array,
        longer: jax.Array | None,
        *,
        key: jax.Array | None = None,
        taps: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Final tokens on the time axis.

        Args:
            mel: float32 dB [B, V, T, mel_bins].
            longer: bool [B], rows to fuse (ignored without fusion); None = no row.
            key: switches stochastic depth on; BatchNorm follows `.train()` / `.eval()`.
            taps: receives the intermediate values by name, for parity tests.

        Returns:
            [B, bands, steps, C]: `bands` halves of the mel axis, `steps` of 10 s / steps each.
        """
        taps = {} if taps is None else taps
        x = taps["bn0"] = self.bn0(mel)
        x = taps["patch_embed"] = self.patch_embed(x, longer)
        for i, stage in enumerate(self.stages):
            x = stage(x, None if key is None else jax.random.fold_in(key, i))
            taps[f"stage{i}"] = x
        x = taps["norm"] = self.norm(x)
        c = self.config
        side = c.grid // 2 ** (len(c.depths) - 1)
        x = x.reshape(x.shape[0], c.quarters, self._bands, side, -1).swapaxes(1, 2)
        return x.reshape(x.shape[0], self._bands, c.quarters * side, -1)

    def __call__(
        self, mel: jax.Array, longer: jax.Array | None, key: jax.Array | None = None
    ) -> jax.Array:
        """The un-normalized embedding, float32 [B, C] (LAION `embedding`, HF `pooler_output`)."""
        return self.latent(mel, longer, key=key).astype(jnp.float32).mean(axis=(1, 2))

    def outputs(self, mel: jax.Array, longer: jax.Array) -> dict[str, jax.Array]:
        """Every published output, float32.

        Returns:
            embedding [B, C]; fine_grained [B, image_frames, C]; with a token-semantic head
            clipwise [B, classes] and framewise [B, image_frames, classes] (sigmoid); with a
            projection `projection` [B, projection_dim], see `Projection`.
        """
        z = self.latent(mel, longer).astype(jnp.float32)
        repeat = self.config.image_frames // z.shape[2]
        out = {
            "embedding": z.mean(axis=(1, 2)),
            "fine_grained": jnp.repeat(z.mean(axis=1), repeat, axis=1),
        }
        if self.config.n_classes is not None:
            logits = self.tscam(z.astype(self.dtype)).astype(jnp.float32)[:, 0]
            out["clipwise"] = jax.nn.sigmoid(logits.mean(axis=1))
            out["framewise"] = jnp.repeat(jax.nn.sigmoid(logits), repeat, axis=1)
        if self.config.projection_dim is not None:
            out["projection"] = self.projection(out["embedding"])
        return out


class Projection(nnx.Module):
    """Embedding to the joint audio-text space, as LAION's CLAP or as Microsoft's does it."""

    def __init__(self, width: int, config: HtsatConfig, dtype, *, rngs: nnx.Rngs):
        self.kind = config.projection_kind
        hidden, out = config.projection_hidden, config.projection_dim or 0
        bias = self.kind == "clap"
        self.fc1 = linear(width, hidden, dtype, rngs, use_bias=bias)
        self.fc2 = linear(hidden, out, dtype, rngs, use_bias=bias)
        self.norm = nnx.data(None if self.kind == "clap" else layer_norm(out, dtype, rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, C] -> float32 [B, projection_dim]: unit length (clap), layer-normalized (msclap)."""
        x = self.fc1(x)
        if self.norm is not None:
            return self.norm(x + self.fc2(gelu(x))).astype(jnp.float32)
        x = self.fc2(jax.nn.relu(x)).astype(jnp.float32)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
