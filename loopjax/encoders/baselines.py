"""Encoders that keep the bundled one honest: its untrained twin, and plain log-mel statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from loopjax.encoders.encoder import HtsatEncoder, random_weights
from loopjax.encoders.space import Precision
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig

UNTRAINED = "untrained-nano"
STATISTICS = "log-mel-statistics"


class LogMelStatistics(HtsatEncoder):
    """Mean and standard deviation of each log-mel band over time; no learned weights.

    It shares the front end of the fused towers, so that only the network differs.
    """

    def __init__(self, precision: Precision = "fp32"):
        config = HtsatConfig.nano()
        super().__init__(
            config,
            LogMelConfig.clap_fused(),
            random_weights(config),
            encoder_id=STATISTICS,
            location=STATISTICS,
            precision=precision,
        )

    @property
    def embedding_dim(self) -> int:
        """Twice the number of mel bands."""
        return 2 * self.config.mel_bins

    def _apply(
        self, params: Any, mel: jax.Array, longer: jax.Array | None, everything: bool = False
    ):
        statistics = band_statistics(mel)
        return {"embedding": statistics} if everything else statistics


def band_statistics(mel: jax.Array) -> jax.Array:
    """Mel views [B, V, T, mel] in dB -> [B, 2 * mel] of the whole clip (the global view)."""
    whole = mel[:, 0].astype(jnp.float32)
    return jnp.concatenate([whole.mean(axis=1), whole.std(axis=1)], axis=1)


def untrained_nano(precision: Precision = "fp32") -> HtsatEncoder:
    """The bundled architecture with its initial weights (seed 0)."""
    config = HtsatConfig.nano()
    return HtsatEncoder(
        config,
        LogMelConfig.clap_fused(),
        random_weights(config),
        encoder_id=UNTRAINED,
        location=UNTRAINED,
        precision=precision,
    )


REFERENCES: dict[str, Callable[[Precision], HtsatEncoder]] = {
    UNTRAINED: untrained_nano,
    STATISTICS: LogMelStatistics,
}
