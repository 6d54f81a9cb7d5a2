"""Rendered loops as cached log-mel views with integer labels, and their augmentations."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
from rich.progress import track

from loopjax.encoders.encoder import HtsatEncoder, random_weights
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from scripts.nano.rhythm import Rhythm, rhythm_of

FRONT_END_BATCH = 64
MAX_LONG_S = 28
LONG_SHARE = 4  # a batch of long clips has a quarter of the rows: each has four views
VALIDATION_SHARE = 0.05
TEMPO_EDGES_BPM = (80, 90, 100, 110, 120, 130, 145, 160)


@dataclass(frozen=True)
class Task:
    """One classification head."""

    name: str
    n_classes: int


class LoopMels:
    """The training split of a rendered corpus, as float16 log-mel views in the device's memory.

    Views are computed once with the encoder's own front end and cached beside the corpus.
    """

    def __init__(self, folders: list[Path], mel_config: LogMelConfig, long_every: int, seed: int):
        """Reads (or computes) the caches.

        Args:
            folders: written by scripts/render.
            mel_config: the front end.
            long_every: one batch in so many holds long clips.
            seed: of the crop positions of long clips and of the batch order.
        """
        self.long_every, self.seed = long_every, seed
        shards = [s for folder in folders for s in sorted(folder.glob("shard-*.parquet"))]
        encoder = _front_end_only(mel_config)
        short, long, short_rows, long_rows = [], [], [], []
        for shard in track(shards, "log-mel"):
            rows = pq.read_table(shard).to_pylist()
            target = shard.parent / "mels" / f"{shard.stem}.npz"
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                _cache_shard(shard, rows, target, encoder, seed)
            part = np.load(target)
            short.append(part["short"])
            long.append(part["long"])
            short_rows += [rows[i] for i in part["short_index"]]
            long_rows += [rows[i] for i in part["long_index"]]
        self._short, self._long = (jnp.asarray(np.concatenate(parts)) for parts in (short, long))
        self.labels, self.tasks, self.degradations = _encode_labels(short_rows + long_rows)
        self.clean, self.reversed = map(self.degradations.index, ("none", "reversed"))
        self.off_grid = self.degradations.index("off_grid")
        self._n_short = len(short_rows)
        held_back = np.random.default_rng(seed).random(self._n_short) < VALIDATION_SHARE
        self._train_short, self._validation = np.flatnonzero(~held_back), np.flatnonzero(held_back)
        self._train_long = np.arange(len(long_rows))

    def band_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each mel band over a sample of the training loops."""
        sample = np.asarray(self._short[self._train_short[:2000]], np.float32)
        return sample.mean(axis=(0, 1)), sample.var(axis=(0, 1))

    def rhythm_statistics(self) -> tuple[Rhythm, Rhythm]:
        """Mean and standard deviation of the rhythm targets over a sample of the training loops."""
        sample = rhythm_of(self._short[self._train_short[:1000]])
        return Rhythm(*(x.mean(axis=0) for x in sample)), Rhythm(*(x.std(axis=0) for x in sample))

    def class_weights(self) -> dict[str, np.ndarray]:
        """Weights by task and class: rare degradations count more, as 1/sqrt of their fraction."""
        weights = {task.name: np.ones(task.n_classes, np.float32) for task in self.tasks}
        labels = self.labels["degradation"]
        fraction = np.bincount(labels[labels >= 0], minlength=len(self.degradations)) / len(labels)
        weights["degradation"] = (fraction.max() / fraction).astype(np.float32) ** 0.5
        return weights

    def batch(self, step: int, size: int) -> dict:
        """The batch of a step, the same whatever ran before: mel [B, V, T, mel], labels [B]."""
        if step % self.long_every == self.long_every - 1 and len(self._train_long):
            rows = self._pick(self._train_long, step // self.long_every, size // LONG_SHARE)
            mel, index = jnp.take(self._long, rows, axis=0), rows + self._n_short
        else:
            index = self._pick(self._train_short, step - step // self.long_every, size)
            mel = jnp.take(self._short, index, axis=0)[:, None]
        return {"mel": mel, "labels": {k: v[index] for k, v in self.labels.items()}}

    def validation(self, size: int) -> Iterator[dict]:
        """Whole batches over the held-back loops of the training programs."""
        for start in range(0, len(self._validation) - size + 1, size):
            index = self._validation[start : start + size]
            labels = {k: v[index] for k, v in self.labels.items()}
            mel = jnp.take(self._short, index, axis=0)[:, None].astype(jnp.float32)
            yield {"mel": mel, "labels": labels}

    def _pick(self, pool: np.ndarray, turn: int, size: int) -> np.ndarray:
        per_epoch = max(len(pool) // size, 1)
        epoch, position = divmod(turn, per_epoch)
        order = np.random.default_rng([self.seed, epoch, len(pool)]).permutation(pool)
        return order[position * size : (position + 1) * size]


def play_backwards(
    mel: jax.Array, degradation: jax.Array, names: tuple[int, int], fraction: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Reverse a fraction of the rows in time, their local crops changing places accordingly.

    Args:
        mel: [B, V, T, mel]; the first view is the whole clip.
        degradation: labels [B].
        names: the labels of clean and of reversed loops; each becomes the other.
        fraction: of the rows.
        key: JAX key.

    Returns:
        mel and labels, same shapes.
    """
    clean, backwards = names
    swapped = jnp.where(degradation == backwards, clean, degradation)
    swapped = jnp.where(degradation == clean, backwards, swapped)
    chosen = jax.random.bernoulli(key, fraction, degradation.shape)
    flipped = jnp.concatenate([mel[:, :1], mel[:, :0:-1]], axis=1)[:, :, ::-1]
    mel = jnp.where(chosen[:, None, None, None], flipped, mel)
    return mel, jnp.where(chosen, swapped, degradation)


def stretch(mel: jax.Array, most: float, key: jax.Array) -> jax.Array:
    """Play each row faster or slower at the same pitch, by linear interpolation in time.

    Args:
        mel: float16 or float32 [B, V, T, mel]; a faster row goes on from its beginning.
        most: change of the speed, a fraction; drawn per row between -most and most.
        key: JAX key.

    Returns:
        float32, same shape.
    """
    frames = mel.shape[2]
    speed = 1.0 + jax.random.uniform(key, (mel.shape[0], 1), minval=-most, maxval=most)
    place = jnp.arange(frames) * speed
    below = jnp.floor(place).astype(jnp.int32)
    part = (place - below)[:, None, :, None]
    pick = jax.vmap(lambda row, index: row[:, index % frames])
    return (1.0 - part) * pick(mel, below) + part * pick(mel, below + 1)


def augment(mel: jax.Array, key: jax.Array) -> jax.Array:
    """Random gain, spectral tilt and curve, noise floor, time roll and SpecAugment, in dB.

    Args:
        mel: float16 or float32 [B, V, T, mel].
        key: JAX key.

    Returns:
        float32, same shape.
    """
    b, _, frames, bands = mel.shape
    x = mel.astype(jnp.float32)
    keys = jax.random.split(key, 7)
    position = jnp.linspace(-1.0, 1.0, bands)
    gain_db = jax.random.uniform(keys[0], (b, 1), minval=-12.0, maxval=6.0)
    tilt_db = jax.random.uniform(keys[1], (b, 1), minval=-5.0, maxval=5.0) * position
    knots = jax.random.normal(keys[2], (b, 8)) * 1.5
    curve_db = jax.image.resize(knots, (b, bands), "linear")
    x = x + (gain_db + tilt_db + curve_db)[:, None, None, :]
    floor_db = jax.random.uniform(keys[3], (b, 1, 1, 1), minval=-100.0, maxval=-75.0)
    x = 10.0 * jnp.log10(10.0 ** (x / 10.0) + 10.0 ** (floor_db / 10.0))
    shift = jax.random.randint(keys[4], (b,), 0, frames)
    x = jax.vmap(lambda row, s: jnp.roll(row, s, axis=1))(x, shift)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    hidden = _stripes(keys[5], b, frames, 64)[:, None, :, None]
    hidden |= _stripes(keys[6], b, bands, 8)[:, None, None, :]
    return jnp.where(hidden, mean, x)


def _stripes(key: jax.Array, batch: int, size: int, width: int) -> jax.Array:
    """One random stripe of up to `width` per row; half of the rows get none."""
    start_key, width_key, use_key = jax.random.split(key, 3)
    start = jax.random.randint(start_key, (batch, 1), 0, size)
    span = jax.random.randint(width_key, (batch, 1), 0, width + 1)
    use = jax.random.bernoulli(use_key, 0.5, (batch, 1))
    place = jnp.arange(size)
    return (place >= start) & (place < start + span) & use


def _front_end_only(mel_config: LogMelConfig) -> HtsatEncoder:
    config = HtsatConfig.nano()
    return HtsatEncoder(config, mel_config, random_weights(config), encoder_id="front-end")


def _cache_shard(
    shard: Path, rows: list[dict], target: Path, encoder: HtsatEncoder, seed: int
) -> None:
    audio = np.load(shard.with_suffix(".npy"), mmap_mode="r")
    hop, clip_frames = encoder.mel_config.hop_samples, encoder.mel_config.clip_frames
    is_long = np.array([row["length_samples"] // hop + 1 > clip_frames for row in rows])
    rng = np.random.default_rng([seed, int(shard.stem.split("-")[1])])
    arrays = {}
    for kind, chosen in (("short", np.flatnonzero(~is_long)), ("long", np.flatnonzero(is_long))):
        bound = encoder.clip_samples if kind == "short" else MAX_LONG_S * encoder.sample_rate_hz
        views = [np.zeros((0, 4, clip_frames, encoder.mel_config.mel_bins), np.float16)]
        for start in range(0, len(chosen), FRONT_END_BATCH):
            members = chosen[start : start + FRONT_END_BATCH]
            batch = np.zeros((FRONT_END_BATCH, bound), np.int16)
            lengths = np.zeros(FRONT_END_BATCH, np.int32)
            for slot, i in enumerate(members):
                n = lengths[slot] = min(rows[i]["length_samples"], bound)
                batch[slot, :n] = audio[rows[i]["offset_samples"] :][:n]
            places = rng.random((FRONT_END_BATCH, 3))
            mel, _ = encoder.front_end(batch, lengths, crop_fractions=places)
            views.append(np.asarray(mel[: len(members)], np.float16))
        stacked = np.concatenate(views)
        arrays[kind] = stacked[:, 0] if kind == "short" else stacked
        arrays[f"{kind}_index"] = chosen
    temporary = target.with_name(f".{target.stem}.tmp.npz")
    np.savez(temporary, **arrays)
    temporary.rename(target)


def _encode_labels(rows: list[dict]) -> tuple[dict[str, np.ndarray], list[Task], list[str]]:
    """Labels and sizes of all tasks, and the names of the degradations."""
    columns = {
        "program": [row["program_name"] for row in rows],
        "family": [row["family"] for row in rows],
        "key": [None if row["key"] == "none" else row["key"] for row in rows],
        "tempo": [int(np.searchsorted(TEMPO_EDGES_BPM, row["tempo_bpm"])) for row in rows],
        "pattern": [row["pattern"] for row in rows],
        # A constant offset lies below the mel bank: nothing could learn to see it.
        "degradation": [None if row["degradation"] == "dc" else row["degradation"] for row in rows],
    }
    labels, tasks, names = {}, [], {}
    for name, values in columns.items():
        classes = sorted({v for v in values if v is not None}, key=str)
        index = {value: i for i, value in enumerate(classes)}
        labels[name] = np.array([-1 if v is None else index[v] for v in values], np.int32)
        tasks.append(Task(name, len(classes)))
        names[name] = classes
    return labels, tasks, names["degradation"]
