"""Fault matrix rows 48 and 49: device and process counts, lengths and compiled programs."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from loopjax.audio.batching import make_buckets
from loopjax.audio.sources.source import open_source
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus
from loopjax.encoders.encoder import random_weights
from loopjax.encoders.storage import save_encoder
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from loopjax.store.read import part_files, read_embeddings
from tests.audio_files import write_corpus, write_tone
from tests.fake_encoder import FakeEncoder

pytestmark = pytest.mark.faults

STATM = Path("/proc/self/statm")  # second field: resident pages


def start(source: Path, out: Path, *settings: str, devices: int = 1) -> subprocess.Popen:
    """A run in its own process, with simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.embed_process", str(source), str(out), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": flags},
    )


def require_success(*processes: subprocess.Popen) -> None:
    """Waits for all of them."""
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors


def by_id(out: Path) -> dict[str, np.ndarray]:
    embeddings = read_embeddings(out)
    ids = embeddings.table["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, embeddings.matrix, strict=True))


def assert_close(rows: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(rows) == sorted(expected)
    for key, row in rows.items():
        np.testing.assert_allclose(row, expected[key], atol=1e-6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices") / "corpus"
    write_corpus(folder, 29)
    write_tone(folder / "long.wav", 12.0, seed=77)
    return folder


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("single") / "store"
    require_success(start(corpus, out, "batch_size=8"))
    return by_id(out)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_row_48_device_count_does_not_matter(corpus, single, tmp_path, devices):
    require_success(start(corpus, tmp_path / "store", "batch_size=8", devices=devices))
    assert_close(by_id(tmp_path / "store"), single)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(corpus: Path, out: Path, count: int, *settings: str, last: tuple = ()):
    """Processes of one run; `last` are further settings of the last one."""
    address = f'coordinator="127.0.0.1:{_free_port()}"'
    group = [address, f"processes={count}", "batch_size=8", *settings]
    return [
        start(corpus, out, *group, f"index={i}", *(last if i == count - 1 else ()))
        for i in range(count)
    ]


@pytest.mark.slow
def test_two_processes_share_a_run_and_another_count_continues_it(corpus, single, tmp_path):
    out = tmp_path / "store"
    require_success(*start_processes(corpus, out, 2))
    assert {part.name[:10] for part in part_files(out)} == {"part-p000-", "part-p001-"}
    assert_close(by_id(out), single)

    # Lose the first process's rows; three processes, then one, continue the run.
    for part in out.glob("part-p000-*.parquet"):
        part.unlink()
    lost = set(single) - set(by_id(out))
    assert lost
    require_success(*start_processes(corpus, out, 3))
    assert_close(by_id(out), single)
    for part in out.glob("part-p001-*.parquet"):
        part.unlink()
    require_success(start(corpus, out, "batch_size=8"))
    assert_close(by_id(out), single)


@pytest.mark.slow
def test_two_processes_of_the_command_line_read_one_encoder(tmp_path):
    corpus, encoder = tmp_path / "corpus", tmp_path / "encoder"
    write_corpus(corpus, 9)
    write_tone(corpus / "long.wav", 12.0, seed=77)
    config = HtsatConfig.nano(width=16, depths=(1, 1, 1), heads=(1, 2, 4))
    weights = random_weights(config, 0)
    save_encoder(
        encoder, config, LogMelConfig(), weights, encoder_id="small", about={}, probe=False
    )
    command = [sys.executable, "-m", "loopjax.cli", "embed", str(corpus), "--encoder", str(encoder)]

    def embed(out: Path, *settings: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "-o", str(out), *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    group = ("--coordinator", f"127.0.0.1:{_free_port()}", "--processes", "2", "--process-index")
    require_success(*(embed(tmp_path / "two", *group, str(i)) for i in range(2)))
    require_success(embed(tmp_path / "one"))
    assert_close(by_id(tmp_path / "two"), by_id(tmp_path / "one"))


@pytest.mark.slow
def test_a_mistake_ends_all_processes_with_the_same_message(corpus, tmp_path):
    out = tmp_path / "store"
    require_success(start(corpus, out))
    processes = start_processes(corpus, out, 2, 'mono="left"')
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 2, errors
        assert "mono: 'mean' there, 'left' now" in errors


@pytest.mark.slow
def test_the_rejected_are_counted_over_all_processes(tmp_path):
    corpus = tmp_path / "corpus"
    write_corpus(corpus, 8)
    for file in sorted(corpus.rglob("*.wav"))[:4:2]:  # every second is the first process's
        file.write_bytes(b"RIFF")
    for limit, codes in (("0.3", [3, 0]), ("0.2", [4, 4])):
        for process, code in zip(
            start_processes(corpus, tmp_path / limit, 2, f"max_failures={limit}"),
            codes,
            strict=True,
        ):
            _, errors = process.communicate(timeout=200)
            assert process.returncode == code, errors
            assert ("2 of 8 inputs were rejected" in errors) == (code == 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [(["strict=true"], 4, "stopped because of --strict"), (["fsize=2000"], 6, "cannot write")],
)
def test_an_error_of_one_process_stops_the_others_soon(tmp_path, settings, code, told):
    corpus, out = tmp_path / "corpus", tmp_path / "store"
    write_corpus(corpus, 400, seconds=(0.1,))
    if code == 4:
        loops = list(open_source([corpus]).loops(1, 2))
        (corpus / loops[99].path).write_bytes(b"RIFF")
    began_s = time.monotonic()
    first, second = start_processes(corpus, out, 2, "batch_s=1", last=(*settings, "batch_s=0.1"))
    _, errors = second.communicate(timeout=200)
    assert second.returncode == code, errors
    assert told in errors
    _, others = first.communicate(timeout=200)
    assert first.returncode == code, others
    assert others == f"process 1 stopped, and so does this one: {errors}"
    assert time.monotonic() - began_s < 25  # of 50 batches of a second
    kept = len(by_id(out))
    assert 0 < kept < 400
    found, errors = start(corpus, out).communicate(timeout=200)
    assert json.loads(found)["n_skipped"] == kept, errors


def test_row_49_compiles_are_bounded_by_buckets_and_formats(tmp_path):
    folder = tmp_path / "lengths"
    folder.mkdir()
    for i in range(60):
        rate_hz = (48_000, 44_100)[i % 2]
        write_tone(folder / f"{i}.wav", 0.1 + 0.05 * i, rate_hz, seed=i)
    encoder = FakeEncoder()
    options = EmbedConfig(batch_size=4, workers=1)
    embed_corpus([folder], encoder, tmp_path / "a", options, progress=False)
    buckets = make_buckets(options.buckets_s, options.max_duration_s, 4)
    used = {(call[0][1], *call[1:]) for call in encoder.calls}
    n_buckets = len([edge for edge in buckets.edges_s if edge < 4.1])
    assert len(used) <= n_buckets * 2
    assert len(encoder.traces) == len(used) + 1
    encoder.traces.clear()
    embed_corpus([folder], encoder, tmp_path / "b", options, progress=False)
    assert not encoder.traces


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_row_49_memory_does_not_grow_with_the_corpus(tmp_path):
    folder = tmp_path / "many"
    write_corpus(folder, 2000, seconds=tuple(np.linspace(0.05, 1.0, 60)), rate_hz=8000)
    encoder = FakeEncoder()
    options = EmbedConfig(batch_size=16, workers=1, shard_rows=64)
    seen: list[int] = []
    plain = encoder.encode

    def encode(mel, longer):
        seen.append(int(STATM.read_text().split()[1]))
        return plain(mel, longer)

    encoder.encode = encode
    embed_corpus([folder], encoder, tmp_path / "store", options, progress=False)
    quarter = len(seen) // 4
    early, late = max(seen[quarter : 2 * quarter]), max(seen[-quarter:])
    assert late < 1.1 * early
