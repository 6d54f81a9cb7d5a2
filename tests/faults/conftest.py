"""One run over healthy loops and every spoiled file; each test then reads one outcome."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus
from loopjax.store.read import Embeddings, read_embeddings
from tests.audio_files import write_corpus
from tests.fake_encoder import FakeEncoder
from tests.faults.spoiled import write_spoiled_files

FAST = {"batch_size": 4, "workers": 1}


@dataclass
class Outcome:
    """What became of a corpus, by file name."""

    store: Path
    embeddings: Embeddings
    reasons: dict[str, str]
    rows: dict[str, dict]
    vectors: dict[str, np.ndarray]


def run_and_read(encoder, sources, store: Path, **options) -> Outcome:
    """Embeds and collects rows and reasons by file name."""
    embed_corpus(sources, encoder, store, EmbedConfig(**(FAST | options)), progress=False)
    embeddings = read_embeddings(store)
    rows = embeddings.table.to_pylist()
    names = [Path(row["path"]).name for row in rows]
    failures = embeddings.failures.to_pylist()
    return Outcome(
        store,
        embeddings,
        {Path(f["path"]).name: f["reason"] for f in failures},
        dict(zip(names, rows, strict=True)),
        dict(zip(names, embeddings.matrix, strict=True)),
    )


@pytest.fixture(scope="session")
def encoder():
    return FakeEncoder()


@pytest.fixture(scope="session")
def healthy(tmp_path_factory):
    """Twelve loops that every run must embed identically."""
    folder = tmp_path_factory.mktemp("healthy") / "corpus"
    write_corpus(folder, 12)
    return folder


@pytest.fixture(scope="session")
def clean(encoder, healthy, tmp_path_factory) -> Outcome:
    """The undisturbed run."""
    return run_and_read(encoder, [healthy], tmp_path_factory.mktemp("clean") / "store")


@pytest.fixture(scope="session")
def spoiled_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoiled") / "files"
    folder.mkdir()
    write_spoiled_files(folder)
    return folder


@pytest.fixture(scope="session")
def spoiled(encoder, healthy, spoiled_folder, tmp_path_factory) -> Outcome:
    """Healthy and spoiled files together, default policies."""
    store = tmp_path_factory.mktemp("spoiled_store") / "store"
    return run_and_read(encoder, [healthy, spoiled_folder], store)


@pytest.fixture(scope="session")
def forgiven(encoder, healthy, spoiled_folder, tmp_path_factory) -> Outcome:
    """The same files with `accept_truncated` and `sanitize`."""
    store = tmp_path_factory.mktemp("forgiven_store") / "store"
    return run_and_read(
        encoder, [healthy, spoiled_folder], store, accept_truncated=True, sanitize=True
    )


def assert_healthy_rows_equal(outcome: Outcome, clean: Outcome) -> None:
    """Bit for bit the undisturbed run, and nothing half-written left."""
    for name, vector in clean.vectors.items():
        np.testing.assert_array_equal(outcome.vectors[name], vector, err_msg=name)
    assert not list(outcome.store.rglob("*.tmp"))
