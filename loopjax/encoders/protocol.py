"""What the rest of the package asks of an encoder, whatever network stands behind it."""

from collections.abc import Sequence
from typing import Protocol, Self

import jax
import numpy as np
from jax.sharding import Mesh

from loopjax.encoders.space import Precision
from loopjax.htsat.frontend import LogMelConfig


class Encoder(Protocol):
    """Batches of samples to embeddings, in two compiled steps.

    `front_end` runs once per bucket and sample rate and leaves features of one small shape;
    `encode` runs on those. Neither result depends on a clip's batch mates.
    """

    @property
    def id(self) -> str:
        """Name that stores of embeddings record."""
        ...

    @property
    def location(self) -> str | None:
        """What `load_encoder` finds it by: a name, or an absolute path; None = made in memory."""
        ...

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What about the front end had to be assumed when the encoder was converted."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights."""
        ...

    @property
    def precision(self) -> Precision:
        """Number format of the network."""
        ...

    @property
    def mel_config(self) -> LogMelConfig:
        """The front end: its rate and clip length, and everything else that changes numbers."""
        ...

    @property
    def fusion(self) -> bool:
        """Whether long clips are fused from several views."""
        ...

    @property
    def mel_shape(self) -> tuple[int, int, int]:
        """Features of one clip: (views, frames, bins)."""
        ...

    @property
    def sample_rate_hz(self) -> int:
        """Rate at which the front end works."""
        ...

    @property
    def device_rates_hz(self) -> Sequence[int]:
        """Sample rates that `front_end` takes and resamples itself; ascending."""
        ...

    @property
    def clip_samples(self) -> int:
        """Samples of one clip at `sample_rate_hz`; longer audio is cropped or fused."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding."""
        ...

    @property
    def joint_dim(self) -> int | None:
        """Width of the space that sounds share with texts; None without one."""
        ...

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [N, embedding_dim] into that space, float32 [N, joint_dim] of unit length."""
        ...

    def replicate(self, mesh: Mesh) -> Self:
        """The same encoder on every device of a one-axis mesh; batches split along that axis."""
        ...

    def front_end(
        self,
        samples: np.ndarray,
        length_samples: np.ndarray,
        sample_rate_hz: int,
        crop_fractions: np.ndarray | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Bucketed samples to features.

        Args:
            samples: int16 or float32 [B, L] mono, zero past the real end.
            length_samples: int [B], real samples per row; 0 marks an empty row.
            sample_rate_hz: rate of `samples`, one of `device_rates_hz`.
            crop_fractions: float [B, 3] in [0, 1), crop positions of clips that are too long;
                None = fixed ones.

        Returns:
            features float32 [B, *mel_shape], longer bool [B] (True where a row exceeds the clip);
            in memory of their own, as `samples` is used again once they are ready.
        """
        ...

    def encode(self, mel: jax.Array, longer: jax.Array | None) -> jax.Array:
        """Features to embeddings, float32 [B, embedding_dim]; not normalized.

        `longer` may be None where no row exceeds the clip.
        """
        ...

    def outputs(self, mel: jax.Array, longer: jax.Array) -> dict[str, jax.Array]:
        """Features to every output the network has; `fine_grained` [B, T, D] where it has steps."""
        ...
