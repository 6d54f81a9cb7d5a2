"""Fetching known encoders with and without a network, and what a person is told."""

import dataclasses
import hashlib
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from loopjax.convert import hub as fetching
from loopjax.encoders import load as named
from loopjax.encoders import published as known
from loopjax.encoders import storage as encoder_files
from loopjax.errors import UserError
from scripts.fuzz.torch_files import write_torch
from tests.htsat.cases import checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "loopjax" / "encoders"


@pytest.fixture
def no_probe(monkeypatch):
    monkeypatch.setattr(
        encoder_files, "probe_embeddings", lambda e: np.ones((2, e.embedding_dim), np.float32)
    )


@pytest.fixture
def narrow(monkeypatch):
    """The published names, with weights as narrow as the tests' own."""
    narrow = tuple(dataclasses.replace(entry, dims=128) for entry in known.KNOWN)
    monkeypatch.setattr(known, "KNOWN", narrow)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub that serves files from a folder and remembers the calls."""
    served, calls = tmp_path / "hub", []
    served.mkdir()

    def hf_hub_download(repo_id, filename, revision, etag_timeout):
        calls.append((repo_id, filename, revision, etag_timeout))
        if not (served / filename).is_file():
            raise ConnectionError("no route to host\nsecond line")
        return str(served / filename)

    level = SimpleNamespace(get_verbosity=lambda: 30, set_verbosity=lambda level: None)
    quiet = SimpleNamespace(disable_progress_bars=lambda: None, logging=level)
    module = SimpleNamespace(hf_hub_download=hf_hub_download, errors=SimpleNamespace(), utils=quiet)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return SimpleNamespace(folder=served, calls=calls)


@pytest.mark.usefixtures("no_probe", "narrow")
def test_pull_verifies_converts_and_caches(hub, cache):
    file = write_torch(
        hub.folder / "630k-best.pt", {"state_dict": checkpoint("laion_mini_unfused")}
    )
    entry = known.known_encoder("630k-best")
    told = fetching.pull("630k-best")
    assert "license: CC0-1.0" in told
    assert f"sha256: {hashlib.sha256(file.read_bytes()).hexdigest()} (not pinned" in told
    assert hub.calls == [("lukewys/laion_clap", "630k-best.pt", None, fetching.TIMEOUT_S)]
    model = named.load_encoder("630k-best")
    assert model.id == "630k-best"
    assert not model.fusion
    assert cache / "630k-best" == named.cache_folder(entry)
    assert next(r for r in named.encoders() if r.name == "630k-best").here
    file.unlink()
    assert "already" in fetching.pull("630k-best")
    assert "probe embeddings differ by 0.0e+00" in named.verify("630k-best")


@pytest.mark.faults
def test_a_wrong_hash_is_not_used(hub, cache):
    entry = known.known_encoder("music_audioset_epoch_15_esc_90.14")
    write_torch(hub.folder / entry.files[0], {"state_dict": checkpoint("laion_mini_unfused")})
    with pytest.raises(UserError, match=f"instead of {entry.sha256}"):
        fetching.pull(entry.name)
    assert hub.calls[0][2] == entry.revision
    assert not cache.exists()


@pytest.mark.faults
def test_fused_weights_under_an_unfused_name_are_refused(hub, cache):
    write_torch(hub.folder / "630k-best.pt", {"state_dict": checkpoint("laion_mini_fused")})
    with pytest.raises(UserError, match="mel_conv2d"):
        fetching.pull("630k-best")
    assert not cache.exists() or not any(cache.iterdir())


@pytest.mark.faults
def test_without_a_network_it_says_what_to_download_and_where_to_put_it(hub, cache):
    with pytest.raises(UserError) as caught:
        fetching.pull("clap-htsat-fused")
    message = str(caught.value)
    assert "no route to host" in message
    assert "second line" not in message
    base = "https://huggingface.co/laion/clap-htsat-fused/resolve/365dea6"
    for file in ("model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"):
        assert f"/{file}" in message
    assert base in message
    assert f"-o {cache}/laion--clap-htsat-fused" in message


@pytest.mark.faults
def test_without_the_optional_dependency(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'loopjax\[hub\]'"):
        fetching.pull("630k-best")


def test_an_unknown_name():
    with pytest.raises(UserError, match="no known encoder 'zzz'"):
        fetching.pull("zzz")


def test_weights_off_the_hub_say_where_they_are():
    with pytest.raises(UserError, match="Google Drive"):
        fetching.pull("HTSAT_AudioSet_Saved_1")


@pytest.mark.usefixtures("no_probe", "narrow")
def test_the_hub_cache_may_hold_links(hub, tmp_path):
    """huggingface_hub returns links into a folder of blobs named by hash."""
    blob = write_torch(tmp_path / "blob", {"state_dict": checkpoint("laion_mini_unfused")})
    (hub.folder / "630k-best.pt").symlink_to(blob)
    fetching.pull("630k-best")
    model = named.load_encoder("630k-best")
    with blob.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    record = encoder_files.read_record(named.cache_folder(known.known_encoder("630k-best")))
    assert record["about"]["source_sha256"] == digest
    assert model.embedding_dim == 128
    shutil.rmtree(named.cache_folder(known.known_encoder("630k-best")))


@pytest.mark.faults
def test_weights_of_another_width_are_not_the_named_ones(hub, cache):
    write_torch(hub.folder / "630k-best.pt", {"state_dict": checkpoint("laion_mini_unfused")})
    with pytest.raises(UserError, match="128-wide embeddings, but 630k-best has 768"):
        fetching.pull("630k-best")
    assert not cache.exists()


@pytest.mark.faults
def test_an_endpoint_without_encryption_is_refused_unless_told(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    with pytest.raises(UserError, match=r"not encrypted.*--allow-http"):
        fetching.pull("630k-best")
    assert not hub.calls
    with pytest.raises(UserError, match="no route to host"):
        fetching.pull("630k-best", allow_http=True)
