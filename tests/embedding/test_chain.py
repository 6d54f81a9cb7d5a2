"""The joiner: numbers that depend on the loop alone, runs that continue, named mistakes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from loopjax import parallel
from loopjax.audio.decode import DecodeOptions, decode_file
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed, embed_corpus, metadata_of
from loopjax.embedding.encode import crop_fractions
from loopjax.embedding.settings import config_of, space_of
from loopjax.encoders import encoder as encoder_module
from loopjax.encoders.encoder import HtsatEncoder, random_weights
from loopjax.encoders.space import Space
from loopjax.errors import TooManyRejectedError, UserError
from loopjax.htsat.frontend import DEVICE_RATES_HZ, LogMelConfig
from loopjax.htsat.model import HtsatConfig
from loopjax.store.read import read_embeddings
from tests.audio_files import tone, write_corpus, write_tone
from tests.fake_encoder import FakeEncoder
from tests.htsat.tolerances import OTHER_SHAPE_OVER_NORM

SONIC_PI = Path(__file__).parents[3] / "shared" / "data" / "sonic-pi"


@pytest.fixture(scope="module")
def real():
    """A real HTS-AT with feature fusion, very small and untrained."""
    config = HtsatConfig.nano(width=16, depths=(1, 1, 1), heads=(1, 2, 4))
    return HtsatEncoder(config, LogMelConfig(), random_weights(config, 0), encoder_id="small")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Every bucket, several rates, both sample formats, two long clips, one odd rate."""
    folder = tmp_path_factory.mktemp("mixed") / "mixed"
    folder.mkdir()
    lengths_s = (0.1, 0.4, 0.5, 0.7, 1.5, 2.0, 3.1, 6.0, 9.5, 10.0, 12.0, 23.0)
    for i, seconds in enumerate(lengths_s):
        rate_hz = (48_000, 44_100, 22_050)[i % 3]
        write_tone(folder / f"{i:02d}.wav", seconds, rate_hz, seed=i, channels=1 + i % 2)
    for i in range(12, 21):  # enough for full batches of one bucket
        write_tone(folder / f"{i:02d}.wav", 0.3 + 0.01 * i, 44_100, seed=i, channels=2)
    write_tone(folder / "21.wav", 0.8, 37_800, seed=21)
    return folder


def by_name(embeddings) -> dict[str, np.ndarray]:
    names = [Path(path).name for path in embeddings.table["path"].to_pylist()]
    return dict(zip(names, embeddings.matrix, strict=True))


def embed_directly(encoder, path: Path) -> np.ndarray:
    """One file through the encoder without the engine: the truth that batches must match."""
    options = DecodeOptions(device_rates_hz=DEVICE_RATES_HZ)
    decoded = decode_file(os.fsencode(path), -1, 0, options)
    lengths = np.array([decoded.samples.size], np.int32)
    features = encoder.front_end(decoded.samples[None], lengths, decoded.info.rate_hz)
    return np.asarray(encoder.encode(*features))[0]


@pytest.fixture(scope="module")
def truth(mixed):
    """Every file of `mixed` on its own, without the engine."""
    encoder = FakeEncoder()
    return {path.name: embed_directly(encoder, path) for path in mixed.iterdir()}


@pytest.mark.parametrize("batch_size", [1, 3, 8, 32])
def test_batches_match_direct_calls(mixed, truth, batch_size):
    rows = by_name(embed(mixed, FakeEncoder(), batch_size=batch_size, workers=1))
    assert sorted(rows) == sorted(truth)
    for name, vector in rows.items():
        np.testing.assert_allclose(vector, truth[name], atol=1e-6)


def test_stored_rows_of_a_real_encoder_match_direct_calls(mixed, real, tmp_path):
    """Fusion included: the long clips must take their branch although the rows are mixed later."""
    options = EmbedConfig(batch_size=4, workers=1)
    embed_corpus([mixed], real, tmp_path / "store", options, progress=False)
    rows = by_name(read_embeddings(tmp_path / "store"))
    for name in ("00.wav", "05.wav", "09.wav", "10.wav", "11.wav", "15.wav", "21.wav"):
        expected = embed_directly(real, mixed / name)
        limit = OTHER_SHAPE_OVER_NORM * np.linalg.norm(expected)
        assert np.abs(rows[name] - expected).max() <= limit, name


def test_real_encoder_rows_are_bitwise_independent_of_their_batch(real, tmp_path):
    """Same shapes, other neighbors, other place in the batch: the same bits."""
    folder = tmp_path / "corpus"
    paths = write_corpus(folder, 11, seconds=(0.3, 0.8))
    whole = by_name(embed(folder, real, batch_size=4, workers=1))
    backwards = tmp_path / "list.txt"
    backwards.write_text("\n".join(str(path) for path in reversed(paths[1:])))
    for name, vector in by_name(embed(backwards, real, batch_size=4, workers=1)).items():
        np.testing.assert_array_equal(vector, whole[name])
    alone = by_name(embed(paths[6], real, batch_size=4, workers=1))
    np.testing.assert_array_equal(alone[paths[6].name], whole[paths[6].name])


def test_worker_count_does_not_change_a_bit(mixed, tmp_path):
    one = embed(mixed, FakeEncoder(), batch_size=4, workers=1)
    three = embed(mixed, FakeEncoder(), batch_size=4, workers=3)
    np.testing.assert_array_equal(one.matrix, three.matrix)
    assert one.table.equals(three.table)


def test_real_encoder_compiles_once_per_bucket_and_format(real, tmp_path):
    for i, (seconds, rate_hz) in enumerate([(0.2, 48_000), (0.3, 48_000), (0.4, 44_100)] * 3):
        write_tone(tmp_path / f"{i}.wav", seconds + 0.01 * i, rate_hz, seed=i)
    write_tone(tmp_path / "x.wav", 0.9, 48_000)
    before = encoder_module.split_front_end._cache_size(), real._encode._cache_size()
    embed(tmp_path, real, batch_size=3, workers=1)
    added = encoder_module.split_front_end._cache_size() - before[0]
    assert added == 3  # 0.5 s at two rates, 1 s at one
    assert real._encode._cache_size() - before[1] == 1
    embed(tmp_path, real, batch_size=3, workers=1)
    assert encoder_module.split_front_end._cache_size() - before[0] == 3
    assert real._encode._cache_size() - before[1] == 1


def test_store_equals_memory_and_a_rerun_does_nothing(mixed, tmp_path):
    encoder = FakeEncoder()
    options = EmbedConfig(batch_size=4, workers=1, shard_rows=5)
    summary = embed_corpus([mixed], encoder, tmp_path / "store", options, progress=False)
    assert (summary.n_embedded, summary.n_failed, summary.n_skipped) == (22, 0, 0)
    assert 0.0 <= summary.wait_fraction <= 1.0
    stored = read_embeddings(tmp_path / "store")
    memory = embed(mixed, encoder, options)
    np.testing.assert_array_equal(stored.matrix, memory.matrix)
    assert stored.table.equals(memory.table)
    assert stored.metadata == memory.metadata
    calls = len(encoder.calls)
    again = embed_corpus([mixed], encoder, tmp_path / "store", options, progress=False)
    assert (again.n_embedded, again.n_skipped) == (0, 22)
    assert len(encoder.calls) == calls


def test_new_files_join_an_existing_store(tmp_path):
    write_corpus(tmp_path / "corpus", 3)
    options = EmbedConfig(batch_size=4, workers=1)
    encoder = FakeEncoder()
    embed_corpus([tmp_path / "corpus"], encoder, tmp_path / "store", options, progress=False)
    write_tone(tmp_path / "corpus" / "new.wav", seed=77)
    summary = embed_corpus([tmp_path / "corpus"], encoder, tmp_path / "store", options)
    assert (summary.n_embedded, summary.n_skipped) == (1, 3)
    assert len(read_embeddings(tmp_path / "store")) == 4


def test_row_table_describes_the_file(tmp_path):
    (tmp_path / "kit").mkdir()
    path = write_tone(tmp_path / "kit" / "x.wav", 0.5, 44_100, channels=2)
    (row,) = embed(tmp_path / "kit", FakeEncoder()).table.to_pylist()
    assert row["id"] == f"{row['sha256'][:16]}-{row['key']}"
    assert row["path_bytes"] == os.fsencode(path)
    assert (row["group"], row["sample_rate_hz"], row["channels"]) == ("kit", 44_100, 2)
    assert (row["n_frames"], row["duration_s"], row["subtype"]) == (22_050, 0.5, "PCM_16")
    assert row["flags"] == []
    assert row["crop_std"] is None


def test_seeded_crops_average_draws_that_depend_on_the_audio_alone(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    for i in range(3):
        t = np.arange(48_000 * 14) / 48_000
        wave = np.sin(2 * np.pi * 200 * t) * np.linspace(0.05, 0.9, t.size) * (1 + i) / 4
        soundfile.write(folder / f"{i}.wav", wave, 48_000)
    write_tone(folder / "short.wav", 0.5)
    encoder = FakeEncoder()
    fixed = embed(folder, encoder, batch_size=2, workers=1)
    seeded = embed(folder, encoder, batch_size=2, workers=1, crops="seeded:4")
    again = embed(folder, encoder, batch_size=4, workers=1, crops="seeded:4")
    np.testing.assert_allclose(seeded.matrix, again.matrix, atol=1e-6)
    spread = {Path(r["path"]).stem: r["crop_std"] for r in seeded.table.to_pylist()}
    assert spread["short"] == 0.0
    assert all(spread[str(i)] > 1e-3 for i in range(3))
    rows, plain = by_name(seeded), by_name(fixed)
    np.testing.assert_array_equal(rows["short.wav"], plain["short.wav"])
    assert not np.allclose(rows["0.wav"], plain["0.wav"])


@pytest.mark.parametrize("crops", ["random", "seeded", "seeded:0", "seeded:x"])
def test_bad_crops_are_a_mistake(mixed, crops):
    with pytest.raises(UserError, match="seeded:K"):
        embed(mixed, FakeEncoder(), crops=crops)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crops": "seeded"}, "seeded:K"),
        ({"batch_size": -4}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"max_duration_s": 0.0}, "max_duration_s"),
        ({"buckets_s": (0.0, 1.0)}, "buckets_s"),
        ({"decode_timeout_s": 0.0}, "decode_timeout_s"),
        ({"max_failures": 1.5}, "max_failures"),
    ],
)
def test_a_wrong_option_leaves_nothing_behind(tmp_path, wrong, message):
    write_corpus(tmp_path / "c", 2)
    out = tmp_path / "store"
    with pytest.raises(UserError, match=message):
        embed_corpus(tmp_path / "c", FakeEncoder(), out, EmbedConfig(**wrong), progress=False)
    assert not out.exists()
    embed_corpus(tmp_path / "c", FakeEncoder(), out, EmbedConfig(crops="seeded:2"), progress=False)
    assert len(read_embeddings(out)) == 2


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / norms


def test_device_and_host_resampling_agree(real, tmp_path):
    folder = tmp_path / "rates"
    folder.mkdir()
    for i, rate_hz in enumerate((44_100, 22_050, 96_000, 32_000)):
        rng = np.random.default_rng(i)
        wave = tone(1.3, rate_hz, seed=i)[:, 0] + 0.05 * rng.standard_normal(round(1.3 * rate_hz))
        soundfile.write(folder / f"{rate_hz}.wav", wave, rate_hz)
    host = embed(folder, real, batch_size=2, workers=1, resample="host")
    device = embed(folder, real, batch_size=2, workers=1, resample="device")
    assert _cosines(host.matrix, device.matrix).min() > 0.9999


@pytest.mark.slow
@pytest.mark.skipif(not SONIC_PI.exists(), reason="the real loops are not at hand")
def test_device_and_host_resampling_agree_on_real_loops(real, tmp_path):
    loops = sorted(SONIC_PI.glob("loop_*.flac"))[:12] + sorted(SONIC_PI.glob("drum_*.flac"))[:12]
    host = embed(loops, real, batch_size=4, workers=1, resample="host")
    device = embed(loops, real, batch_size=4, workers=1, resample="device")
    assert _cosines(host.matrix, device.matrix).min() >= 0.9999


def test_odd_rates_need_the_host(mixed):
    rejected = embed(mixed, FakeEncoder(), batch_size=4, workers=1, resample="device").failures
    assert rejected["reason"].to_pylist() == ["unsupported_rate"]
    assert rejected["path"][0].as_py().endswith("21.wav")


def test_rejected_inputs_are_listed_and_healthy_ones_embedded(tmp_path):
    write_corpus(tmp_path / "c", 2)
    (tmp_path / "c" / "bad.wav").write_bytes(b"junk")
    embeddings = embed(tmp_path / "c", FakeEncoder())
    assert len(embeddings) == 2
    assert embeddings.failures["reason"].to_pylist() == ["unsupported_format"]
    with pytest.raises(UserError, match=r"nothing could be embedded \(.*bad.wav"):
        embed(tmp_path / "c" / "bad.wav", FakeEncoder())


def test_failure_budget_and_strictness(tmp_path, monkeypatch):
    write_corpus(tmp_path / "c", 3)
    (tmp_path / "c" / "bad.wav").write_bytes(b"junk")
    base = {"batch_size": 4, "workers": 1}

    def run(out: str, **options):
        settings = EmbedConfig(**base, **options)
        return embed_corpus(
            [tmp_path / "c"], FakeEncoder(), tmp_path / out, settings, progress=False
        )

    assert run("ok", max_failures=0.25).reasons == {"unsupported_format": 1}
    with pytest.raises(TooManyRejectedError, match="1 of 4 inputs were rejected"):
        run("budget", max_failures=0.2)
    assert len(read_embeddings(tmp_path / "budget")) == 3  # what was good is kept
    with pytest.raises(TooManyRejectedError, match=r"bad.wav.*--strict"):
        run("strict", strict=True)
    others = {"": 16}  # what another process of the run found
    monkeypatch.setattr(parallel, "gather", lambda text: [text, json.dumps(others)])
    run("few of all", max_failures=0.05)
    others["timeout"] = 5
    told = r"6 of 25 inputs were rejected \(5 timeout, 1 unsupported_format\)"
    with pytest.raises(TooManyRejectedError, match=told):
        run("many of all", max_failures=0.2)


def test_mistakes_of_sources_and_options(mixed, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no audio files \(WAV.*empty"):
        embed_corpus([tmp_path / "empty"], FakeEncoder(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(UserError, match="not an audio file"):
        embed_corpus([tmp_path / "README.md"], FakeEncoder(), tmp_path / "out")
    with pytest.raises(UserError, match="batch_sise"):
        embed(mixed, FakeEncoder(), batch_sise=3)
    with pytest.raises(UserError, match="must be the only source"):
        embed([mixed, "tfds:nsynth"], FakeEncoder())


def test_settings_travel_with_the_embeddings(tmp_path):
    write_corpus(tmp_path / "c", 1)
    options = EmbedConfig(
        mono="left", crops="seeded:2", resample="host", precision="fp32", sanitize=True
    )
    metadata = embed(tmp_path / "c", FakeEncoder(), options).metadata
    space = Space.from_metadata(metadata)
    assert space == space_of(FakeEncoder(), options)
    back = config_of(space)
    for name in ("mono", "crops", "resample", "precision", "sanitize", "accept_truncated"):
        assert getattr(back, name) == getattr(options, name)


def test_the_space_follows_everything_that_changes_numbers():
    encoder = FakeEncoder()
    base = space_of(encoder, EmbedConfig())
    same = EmbedConfig(batch_size=7, workers=3, shard_rows=9, max_failures=0.1, encoder="elsewhere")
    assert metadata_of(space_of(encoder, same)) == metadata_of(base)
    for change in (
        {"mono": "left"},
        {"crops": "seeded:3"},
        {"resample": "host"},
        {"sanitize": True},
        {"accept_truncated": True},
    ):
        (name,) = change
        changed = space_of(encoder, EmbedConfig(**change))
        assert [text.split(":")[0] for text in changed.differences(base)] == [name]
        hashes = [metadata_of(space)["preprocessing_sha256"] for space in (changed, base)]
        assert hashes[0] != hashes[1]
    other = space_of(FakeEncoder(seed=1), EmbedConfig())
    assert [text.split(":")[0] for text in other.differences(base)] == ["weights_sha256"]


def test_a_single_path_and_a_list_of_paths_are_sources(tmp_path):
    paths = write_corpus(tmp_path / "c", 3)
    encoder = FakeEncoder()
    assert len(embed(paths[0], encoder)) == 1
    assert len(embed(str(paths[0]), encoder)) == 1
    assert len(embed(paths, encoder)) == 3


def test_works_from_a_thread_without_signal_handlers(tmp_path):
    import threading

    write_corpus(tmp_path / "c", 2)
    results = []
    thread = threading.Thread(target=lambda: results.append(embed(tmp_path / "c", FakeEncoder())))
    thread.start()
    thread.join()
    assert len(results[0]) == 2


def test_seeded_crops_depend_on_the_audio_and_the_seed_alone():
    hashes = [f"{i:064x}" for i in (7, 8, 9)]
    forward, backward = crop_fractions(hashes, 1), crop_fractions(hashes[::-1], 1)
    np.testing.assert_array_equal(forward, backward[::-1])
    assert len(np.unique(forward)) == 9
    assert not np.array_equal(forward, crop_fractions(hashes, 2))
    assert ((forward >= 0) & (forward < 1)).all()


def test_patterns_and_shortest_loop_choose_what_is_embedded(tmp_path):
    folder = tmp_path / "pack"
    for name, seconds in {"kick/a": 0.5, "kick/b": 0.05, "bass/a": 0.5, "bass/old/a": 0.5}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_tone(folder / f"{name}.wav", seconds)
    config = EmbedConfig(include=("kick", "bass/*"), exclude=("OLD",), min_duration_s=0.1)
    found = embed([folder, folder / "bass" / "a.wav"], FakeEncoder(), config)
    assert found.table["group"].to_pylist() == ["bass", "kick"]
    (failure,) = found.failures.to_pylist()
    assert (Path(failure["path"]).name, failure["reason"]) == ("b.wav", "limit_duration")


def test_copies_of_loops_long_written_are_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr("loopjax.embedding.deduplicate.RECENT_CONTENTS", 2)
    monkeypatch.setattr("loopjax.store.index.LOOK_S", 0.0)
    folder = tmp_path / "loops"
    folder.mkdir()
    for i in range(40):
        write_tone(folder / f"{i:02d}.wav", 0.5, 44_100, seed=i)
    (folder / "zz.wav").write_bytes((folder / "00.wav").read_bytes())
    encoder = FakeEncoder()
    config = EmbedConfig(batch_size=2, shard_rows=2, workers=1)
    summary = embed_corpus([folder], encoder, tmp_path / "store", config, progress=False)
    assert (summary.n_embedded, summary.n_duplicates) == (41, 1)
    found = by_name(read_embeddings(tmp_path / "store"))
    np.testing.assert_array_equal(found["zz.wav"], found["00.wav"])
