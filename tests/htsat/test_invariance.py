"""The same clip gives the same embedding alone, in any batch, order, bucket, rate and precision."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
import soxr

from scripts.goldens.synthetic import clip
from tests.htsat import tolerances
from tests.htsat.cases import micro

LENGTHS = (30000, 96000, 480000, 480240, 700000, 12345, 559999)  # short, exact, long, in a mix
BUCKET = 720000


@cache
def embeddings(order: tuple[int, ...], bucket: int = BUCKET, size: int | None = None):
    """Embeddings of clips in one batch, in the order of the clips' numbers."""
    model = micro()
    size = size or len(order)
    batch, lengths = np.zeros((size, bucket), np.float32), np.zeros(size, np.int32)
    for row, i in enumerate(order):
        batch[row, : LENGTHS[i]] = clip(LENGTHS[i], seed=i)
        lengths[row] = LENGTHS[i]
    mel, longer = model.front_end(batch, lengths)
    out = np.asarray(model.encode(mel, longer))
    return {i: out[row] for row, i in enumerate(order)}


def over_norm(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference relative to the norm."""
    return float(np.abs(one - other).max() / np.linalg.norm(other))


def test_order_and_batch_mates_do_not_change_a_bit():
    all_seven = embeddings(tuple(range(7)))
    for order in ((6, 3, 0, 5, 1, 4, 2), (2, 2, 2, 2, 4, 4, 0)):
        for i, embedding in embeddings(order).items():
            np.testing.assert_array_equal(embedding, all_seven[i])


def test_empty_rows_do_not_change_a_bit():
    """The last batch of a run is padded with rows of length zero."""
    alone = embeddings((1,), size=7)
    np.testing.assert_array_equal(alone[1], embeddings(tuple(range(7)))[1])
    assert np.isfinite(alone[1]).all()


def test_alone_and_in_a_batch_agree():
    all_seven = embeddings(tuple(range(7)))
    for i in (1, 4):
        assert over_norm(embeddings((i,))[i], all_seven[i]) <= tolerances.OTHER_SHAPE_OVER_NORM


@pytest.mark.parametrize(("i", "bucket"), [(0, 48000), (1, 96000), (2, 480000), (3, 480240)])
def test_another_bucket_agrees(i, bucket):
    wide = embeddings(tuple(range(7)))[i]
    narrow = embeddings((i, i, i, i, i, i, i), bucket)[i]
    assert over_norm(narrow, wide) <= tolerances.OTHER_SHAPE_OVER_NORM


@pytest.mark.parametrize("precision", ["bf16", "bf16-fast", "bf16-fused"])
def test_bfloat16_points_the_same_way(precision):
    model = micro(precision)
    exact = micro()
    wave = np.stack([clip(96000, seed=i) for i in range(2)])
    views = exact.front_end(wave, np.array([96000, 96000]))
    for ours, theirs in zip(model.encode(*views), exact.encode(*views), strict=True):
        cosine = float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
        assert tolerances.BF16_COSINE <= cosine < 1.0
    assert model.params.norm.scale[...].dtype == np.float32


def loops_44100() -> list[np.ndarray]:
    """Real loops where they lie beside the checkout, synthetic ones otherwise."""
    folder = Path(__file__).parents[3] / "shared/data/sonic-pi"
    names = ("loop_amen", "loop_breakbeat", "ambi_choir", "bass_dnb_f", "drum_splash_hard")
    found = [folder / f"{name}.flac" for name in names if (folder / f"{name}.flac").is_file()]
    if not found:
        return [clip(44100 * 2, seed=i, rate_hz=44100) for i in range(3)]
    import soundfile

    read = [soundfile.read(file, dtype="float32", always_2d=True) for file in found]
    return [wave.mean(axis=1)[: 10 * 44100] for wave, rate in read if rate == 44100]


def test_device_resampler_gives_the_host_resamplers_embedding():
    """Polyphase on the device against soxr HQ on the host, as librosa calls it."""
    model = micro()
    loops = loops_44100()
    assert loops
    bucket = max(len(wave) for wave in loops)
    batch = np.zeros((len(loops), bucket), np.float32)
    host = np.zeros((len(loops), 480001), np.float32)
    lengths, host_lengths = [], []
    for row, wave in enumerate(loops):
        batch[row, : len(wave)] = wave
        resampled = soxr.resample(wave, 44100, 48000, quality="HQ")
        host[row, : len(resampled)] = resampled
        lengths.append(len(wave))
        host_lengths.append(int(np.ceil(len(wave) * (48000 / 44100))))
    device_views = model.front_end(batch, np.array(lengths), 44100)
    host_views = model.front_end(host, np.array(host_lengths), 48000)
    ours, theirs = (np.asarray(model.encode(*v)) for v in (device_views, host_views))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert ((ours * theirs).sum(axis=1) / norms).min() >= tolerances.DEVICE_RESAMPLER_COSINE
    # Far less than what tells one loop from another.
    assert np.abs(ours - theirs).max() < 0.02 * theirs.std(axis=0).max()


def test_one_program_per_shape():
    """Another batch of the same shape compiles nothing."""
    model = micro()
    rng = np.random.default_rng(0)
    lengths = np.array([1000, 2, 700000, 480000, 5, 6, 720000])
    compiled = []

    def count(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    def encode() -> None:
        batch = rng.normal(size=(7, BUCKET)).astype(np.float32)
        model.encode(*model.front_end(batch, rng.permutation(lengths))).block_until_ready()

    encode()  # here, because the first interpreted kernel makes jax 0.11 forget its programs
    jax.monitoring.register_event_duration_secs_listener(count)
    encode()
    assert not compiled
