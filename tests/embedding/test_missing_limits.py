"""A system that refuses the decoders a limit is named in the summary, the store and the run."""

import functools
import json

import pytest

from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources import files
from loopjax.cli import main
from loopjax.config import EmbedConfig
from loopjax.embedding.chain import embed_corpus
from loopjax.store.read import read_embeddings
from tests.audio_files import write_corpus
from tests.fake_encoder import FakeEncoder


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_the_store_says_what_its_decoders_lacked(tmp_path, monkeypatch, system):
    write_corpus(tmp_path / "loops", 3)
    options = EmbedConfig(batch_size=2, workers=1)
    plain, other = tmp_path / "plain", tmp_path / "other"
    summary = embed_corpus(tmp_path / "loops", FakeEncoder(), plain, options, progress=False)
    assert summary.missing_limits == ()
    assert "missing_limits" not in read_embeddings(plain).metadata
    decoder = functools.partial(DecoderProcess, module=f"tests.audio.{system}_worker")
    monkeypatch.setattr(files, "DecoderProcess", decoder)
    summary = embed_corpus(tmp_path / "loops", FakeEncoder(), other, options, progress=False)
    missing = {"macos": ("memory",), "windows": ("core", "memory")}[system]
    assert summary.missing_limits == missing
    assert read_embeddings(other).metadata["missing_limits"] == ",".join(missing)


def test_the_run_record_says_what_its_decoders_lacked(tmp_path, monkeypatch):
    write_corpus(tmp_path / "loops", 16, seconds=(0.1, 0.2))
    decoder = functools.partial(DecoderProcess, module="tests.audio.macos_worker")
    monkeypatch.setattr(files, "DecoderProcess", decoder)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"name: limits\ndata: {{sources: [{tmp_path / 'loops'}]}}\nseeds: [0]\n"
        "embed: {encoder: log-mel-statistics, workers: 1}\n"
        "detectors: [{name: cosine, kind: mean-cosine}]\n"
        "evaluate: {bootstrap: 20}\nreport: {audio: none}\n"
    )
    out = tmp_path / "run"
    assert main(["run", str(config), "-o", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["missing_limits"] == ["memory"]
    assert main(["run", str(config), "-o", str(out)]) == 0  # nothing is decoded this time
    assert json.loads((out / "run.json").read_text())["missing_limits"] == ["memory"]
