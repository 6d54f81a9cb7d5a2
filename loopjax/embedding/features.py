"""Features that wait on the device until they fill a batch of the encoder.

Front-end batches are small and of many shapes; the encoder's are large and of one. Every device
keeps its own rows in one buffer, so nothing returns to the host or crosses between devices, and the
memory is that of one encoder batch and one front-end batch, whatever arrives.
"""

from collections.abc import Sequence
from functools import partial
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
Features = tuple[jax.Array, jax.Array]  # (mel, longer) of a batch, see `Encoder.front_end`


class FeaturePool(Generic[T]):
    """Collects the features of front-end batches and hands out encoder batches."""

    def __init__(
        self,
        mesh: Mesh,
        batch_rows: int,
        front_end_rows: int,
        mel_shape: tuple[int, ...],
        n_draws: int,
    ):
        """Allocates the buffers.

        Args:
            mesh: one axis; rows are split along it.
            batch_rows: of the encoder, a multiple of the number of devices.
            front_end_rows: of the largest front-end batch, likewise.
            mel_shape: of one row.
            n_draws: feature sets per row, one per random crop.
        """
        self._mesh, n_devices = mesh, mesh.devices.size
        self._per_device = batch_rows // n_devices
        capacity = self._per_device + front_end_rows // n_devices
        self._split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        shape = (n_devices * capacity, *mel_shape)
        self._buffers = [
            (
                jnp.zeros(shape, jnp.float32, device=self._split),
                jnp.zeros(shape[0], bool, device=self._split),
            )
            for _ in range(n_draws)
        ]
        self._rows: list[list[T]] = [[] for _ in range(n_devices)]

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    @property
    def is_full(self) -> bool:
        """Whether a batch must be taken before more is added."""
        fills = [len(rows) for rows in self._rows]
        return min(fills) >= self._per_device or max(fills) > self._per_device

    def add(self, draws: Sequence[Features], rows: Sequence[Sequence[T]]) -> None:
        """Takes a front-end batch; the pool must not be full.

        Args:
            draws: features of the batch, one set per draw.
            rows: per device whose the first rows of its part are; the others are padding.
        """
        offsets = jax.device_put(np.array([len(r) for r in self._rows], np.int32), self._split)
        self._buffers = [
            _append(*buffer, *draw, offsets, mesh=self._mesh)
            for buffer, draw in zip(self._buffers, draws, strict=True)
        ]
        for waiting, new in zip(self._rows, rows, strict=True):
            waiting.extend(new)

    def take(self) -> tuple[list[Features], list[list[T]]]:
        """A batch of the encoder: its features per draw, and whose rows they are per device.

        Where a device has too few rows, its part ends in padding.
        """
        taken = []
        for i, buffer in enumerate(self._buffers):
            batch, self._buffers[i] = _take(*buffer, mesh=self._mesh, per_device=self._per_device)
            taken.append(batch)
        rows = [waiting[: self._per_device] for waiting in self._rows]
        self._rows = [waiting[self._per_device :] for waiting in self._rows]
        return taken, rows


@partial(jax.jit, static_argnames="mesh", donate_argnums=(0, 1))
def _append(
    mel: jax.Array,
    longer: jax.Array,
    new_mel: jax.Array,
    new_longer: jax.Array,
    offsets: jax.Array,
    mesh: Mesh,
) -> Features:
    """Each device writes its part of a batch into its buffer, from its offset on."""

    def local(
        mel: jax.Array,
        longer: jax.Array,
        new_mel: jax.Array,
        new_longer: jax.Array,
        offset: jax.Array,
    ) -> Features:
        at = offset[0]
        return (
            lax.dynamic_update_slice_in_dim(mel, new_mel, at, axis=0),
            lax.dynamic_update_slice_in_dim(longer, new_longer, at, axis=0),
        )

    split = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=(split,) * 5, out_specs=split)(
        mel, longer, new_mel, new_longer, offsets
    )


@partial(jax.jit, static_argnames=("mesh", "per_device"), donate_argnums=(0, 1))
def _take(
    mel: jax.Array, longer: jax.Array, mesh: Mesh, per_device: int
) -> tuple[Features, Features]:
    """Each device's first rows, and the buffers with the others moved to the front."""

    def local(mel: jax.Array, longer: jax.Array) -> tuple[Features, Features]:
        return (mel[:per_device], longer[:per_device]), (
            jnp.roll(mel, -per_device, axis=0),
            jnp.roll(longer, -per_device, axis=0),
        )

    split = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=(split, split), out_specs=split)(mel, longer)
