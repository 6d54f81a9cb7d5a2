"""Features on the device, and how much is computed and moved for each file."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from loopjax import parallel
from loopjax.audio.batching import Batch
from loopjax.audio.decoder import Reply, one_by_one
from loopjax.audio.feeding import Feeder
from loopjax.audio.loop import AudioInfo, Loop
from loopjax.config import EmbedConfig
from loopjax.embedding import encode as encode_module
from loopjax.embedding.encode import BatchEncoder
from loopjax.embedding.features import FeaturePool
from loopjax.embedding.settings import space_of
from tests.fake_encoder import FakeEncoder

SHAPE = (1, 3, 2)


def features(values: list[int], n_rows: int):
    mel = np.full((n_rows, *SHAPE), -1.0, np.float32)
    for i, value in enumerate(values):
        mel[i] = value
    longer = np.zeros(n_rows, bool)
    longer[: len(values)] = [value % 2 for value in values]
    return jax.numpy.asarray(mel), jax.numpy.asarray(longer)


def test_rows_leave_a_pool_in_the_order_in_which_they_came():
    pool: FeaturePool[int] = FeaturePool(parallel.data_mesh(), 5, 4, SHAPE, n_draws=2)
    added, taken = [], []
    for size in (4, 1, 3, 2, 4, 4, 1):
        new = list(range(len(added), len(added) + size))
        added += new
        pool.add([features(new, 4), features([v + 100 for v in new], 4)], [new])
        while pool.is_full:
            taken.append(pool.take())
    taken.append(pool.take())
    assert len(pool) == 0
    assert [row for _, (rows,) in taken for row in rows] == added
    assert [len(rows) for _, (rows,) in taken] == [5, 5, 5, 4]
    for draws, (rows,) in taken:
        for offset, (mel, longer) in zip((0, 100), draws, strict=True):
            assert mel.shape == (5, *SHAPE)
            assert np.asarray(mel)[: len(rows), 0, 0, 0].tolist() == [r + offset for r in rows]
            assert np.asarray(longer)[: len(rows)].tolist() == [bool(r % 2) for r in rows]


class Counted(FakeEncoder):
    """Counts front-end rows and bytes, and the features that are alive at a time."""

    def front_end(self, samples, length_samples, sample_rate_hz=48_000, crop_fractions=None):
        self.rows = getattr(self, "rows", 0) + len(samples)
        self.bytes = getattr(self, "bytes", 0) + samples.nbytes
        return super().front_end(samples, length_samples, sample_rate_hz, crop_fractions)


class Noise:
    """Decodes loop number N to half a second to eight seconds of the mix's next rate and format.

    Rates are a tenth of the real ones, which changes no proportion.
    """

    def __init__(self, rates_hz, dtypes):
        self._rates_hz, self._dtypes = rates_hz, dtypes
        self.useful_bytes = 0

    def decode_each(self, loops):
        return one_by_one(self.decode, loops)

    def decode(self, loop: Loop) -> Reply:
        i = int(loop.path)
        rng = np.random.default_rng(i)
        rate_hz = self._rates_hz[i % len(self._rates_hz)]
        dtype = np.dtype(self._dtypes[rng.integers(len(self._dtypes))])
        n = int(rng.uniform(0.5, 8.0) * rate_hz)
        info = AudioInfo(rate_hz, f"{i:064x}", rate_hz, 1, n, n / rate_hz, "PCM_16")
        self.useful_bytes += n * dtype.itemsize
        return Reply(loop, info, dtype, n, self)

    def copy_samples(self, out: np.ndarray) -> None:
        out[:] = 1

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def loop(i: int) -> Loop:
    return Loop(f"{i:016x}", str(i), b"", 0, 0, "group")


@pytest.mark.parametrize("batch_size", [128, 512, 1024])
@pytest.mark.parametrize("rates_hz", [(4800,), (4410, 4800)], ids=["one rate", "two rates"])
@pytest.mark.parametrize("dtypes", [("int16",), ("int16", "float32")], ids=["int16", "mixed"])
@pytest.mark.parametrize("n_files", [400, 2500])
def test_little_more_is_computed_and_moved_than_the_files_hold(
    batch_size, rates_hz, dtypes, n_files, monkeypatch
):
    encoder, config = Counted(dim=4), EmbedConfig(batch_size=batch_size)
    engine = BatchEncoder[list](encoder, space_of(encoder, config), config)
    decoder = Noise(rates_hz, dtypes)
    feeder = Feeder(map(loop, range(n_files)), [decoder], engine.buckets, lambda f: None)
    rows_waiting = 0
    found: list[str] = []
    for batch in feeder:
        found += [encoded.row[0].loop.path for encoded in engine.encode(batch)]
        buffers = [buffer for pool in engine._pools.values() for buffer in pool._buffers]
        rows_waiting = max(rows_waiting, sum(len(mel) for mel, _ in buffers))
    found += [encoded.row[0].loop.path for encoded in engine.finish()]
    feeder.close()
    assert sorted(map(int, found)) == list(range(n_files))
    assert encoder.rows <= 1.3 * n_files
    assert encoder.bytes <= 2.0 * decoder.useful_bytes
    front_end_rows = encode_module.FRONT_END_ROWS["cpu"] * jax.local_device_count()
    assert rows_waiting <= batch_size + front_end_rows  # one encoder batch and one front-end batch


class Fusing(Counted):
    """Notes for every encoder batch whether the caller left the long clips to the device."""

    fusion = True

    def encode(self, mel, longer):
        self.told = [*getattr(self, "told", []), longer is None]
        return super().encode(mel, longer)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_an_accelerator_is_told_which_batches_have_long_clips(backend, monkeypatch):
    """So that no batch waits for the host to learn it; a CPU looks for itself."""
    monkeypatch.setattr(encode_module.jax, "default_backend", lambda: backend)
    encoder, config = Fusing(dim=4), EmbedConfig(batch_size=8)
    engine = BatchEncoder[int](encoder, space_of(encoder, config), config)
    engine.compile()
    lengths = [100, 480_000, 480_001, 100, 700_000]
    found = {}
    for number, length in enumerate(lengths):
        batch = Batch(
            np.full((4, 720_000), number, np.float32), np.array([length, 0, 0, 0], np.int32),
            np.array([True, False, False, False]), [number], ["0" * 64], 48_000, 720_000,
        )  # fmt: skip
        found |= {encoded.row: encoded.embedding for encoded in engine.encode(batch)}
    found |= {encoded.row: encoded.embedding for encoded in engine.finish()}
    assert sorted(found) == list(range(len(lengths)))
    assert encoder.told == ([False, False] if backend == "cpu" else [True, True, False])


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def compiled_for_eight_devices() -> None:
    """Run in a process of its own: prints what the compiled programs hold."""
    from loopjax.encoders import encoder as encoder_module
    from loopjax.encoders.encoder import HtsatEncoder, random_weights
    from loopjax.htsat.frontend import LogMelConfig
    from loopjax.htsat.model import HtsatConfig

    assert jax.local_device_count() == 8
    config = HtsatConfig.nano(width=8, depths=(1, 1), heads=(1, 2))
    encoder = HtsatEncoder(config, LogMelConfig(), random_weights(config), encoder_id="x")
    engine = BatchEncoder[int](encoder, space_of(encoder, EmbedConfig()), EmbedConfig(), 32)
    placed = engine._encoder
    lower, texts = encoder_module.split_front_end.lower, {}
    encoder_module.split_front_end = lambda *arrays, **kw: lower(*arrays, **kw).compile()
    samples, lengths = np.zeros((16, 22_050), np.int16), np.full(16, 20_000)
    texts["front end"] = placed.front_end(samples, lengths, 44_100)
    mel = jax.device_put(np.zeros((32, *encoder.mel_shape), np.float32), engine._sharding)
    longer = jax.device_put(np.zeros(32, bool), engine._sharding)
    texts["encoder"] = placed._encode.lower(placed.params, mel, longer, mesh=placed._mesh).compile()
    for name, program in texts.items():
        text = program.as_text()
        found = [word for word in COLLECTIVES if word in text]
        print(name, found)
        assert not found, name
    assert "s16[2,22050]" in texts["front end"].as_text()  # each device sees its own rows only
    assert "s16[16,22050]" not in texts["front end"].as_text()
    assert "f32[4,4,1001,64]" in texts["encoder"].as_text()


@pytest.mark.slow
def test_no_device_sees_the_rows_of_another():
    code = "from tests.embedding.test_features import compiled_for_eight_devices as f; f()"
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\n")[:2] == ["front end []", "encoder []"]


def pooled_on_two_devices() -> None:
    """Run in a process of its own: rows stay with their device and come back in place."""
    assert jax.local_device_count() == 2
    encoder, config = FakeEncoder(dim=4), EmbedConfig(batch_size=8)
    engine = BatchEncoder[str](encoder, space_of(encoder, config), config)
    rng = np.random.default_rng(0)
    expected, found = {}, {}

    def batch(n: int) -> Batch[str]:
        new = engine.buckets.new_batch(24_000, 48_000, "float32")
        for _ in range(n):
            name = f"{len(expected)}"
            at = new.add(name, "")
            new.samples[at] = rng.standard_normal(24_000)
            new.length_samples[at] = 20_000 + len(expected)
            alone = np.zeros((2, 24_000), np.float32)
            alone[0] = new.samples[at]
            features = encoder.front_end(alone, np.array([new.length_samples[at], 0], np.int32))
            expected[name] = np.asarray(encoder.encode(*features))[0]
        return new

    for n in (5, 8, 1, 1, 1, 7, 3, 8, 2, 1, 1, 1, 1):
        found |= {e.row: e.embedding for e in engine.encode(batch(n))}
    found |= {e.row: e.embedding for e in engine.finish()}
    assert sorted(found) == sorted(expected)
    for name, embedding in found.items():
        np.testing.assert_allclose(embedding, expected[name], atol=1e-5)
    print("equal")


@pytest.mark.slow
def test_rows_of_uneven_batches_find_their_embeddings_on_two_devices():
    code = "from tests.embedding.test_features import pooled_on_two_devices as f; f()"
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "equal"
