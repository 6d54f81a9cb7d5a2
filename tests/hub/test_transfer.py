"""Encoders, models and stores go to a hub over loopback and come back byte for byte."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import loopjax
from loopjax.cli import main
from loopjax.encoders.encoder import random_weights
from loopjax.encoders.space import Space
from loopjax.encoders.storage import save_encoder
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from loopjax.hub.transfer import MANIFEST_NAME, pull, push
from loopjax.io import hub_names
from loopjax.io.remote import place_of
from tests.hub.fake_hub import serve

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small encoder, a store that it made and a model of that store."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    (folder / "loops").mkdir()
    for i in range(12):
        soundfile.write(folder / "loops" / f"{i:02d}.wav", rng.uniform(-0.5, 0.5, 4000), 16000)
    config = HtsatConfig.nano(width=8, depths=(1,), heads=(1,))
    save_encoder(
        folder / "encoder", config, LogMelConfig(), random_weights(config), encoder_id="mine",
        about={"license": "MIT"}, probe=False,
    )  # fmt: skip
    store, model = str(folder / "store"), str(folder / "model")
    small = ["--encoder", str(folder / "encoder"), "--workers", "1"]
    assert main(["embed", str(folder / "loops"), "-o", store, *small]) == 0
    knn = ["--detector", "knn", "--set", "params.n_neighbors=2"]
    assert main(["fit", store, "-o", model, *knn]) == 0
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        yield served


def run(*args):
    return main([*map(str, args), "--allow-http"])


def content(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("encoder", "hf://me/small"),
        ("model", "hf://me/small"),
        ("store", "hf://datasets/me/small"),
    ],
)
def test_what_is_pushed_comes_back_byte_for_byte_under_its_commit(hub, folders, capsys, what, name):
    assert run("push", folders / what, "me/small") == 0
    pinned = capsys.readouterr().out.strip()
    kind = "datasets" if what == "store" else "models"
    (commit, files), *_ = reversed(hub.commits[kind, "me/small"])
    assert pinned == f"{name}@{commit}"
    assert hub.private[kind, "me/small"] is True
    assert run("pull", name) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == pinned
    assert told[1].startswith(f"  {what} in ")
    assert told[2] == f"  sha256: {hashlib.sha256(files[MANIFEST_NAME]).hexdigest()}"
    place = place_of(name)
    assert place == place_of(pinned)
    got = content(place)
    assert {**content(folders / what), MANIFEST_NAME: got[MANIFEST_NAME]} == got
    n_asked = len(hub.asked)
    pull(pinned, allow_http=True)
    assert len(hub.asked) == n_asked  # a commit that is here is asked for no more


def test_cards_say_what_the_record_says(hub, folders):
    for what in ("encoder", "model", "store"):
        push(folders / what, f"me/{what}", allow_http=True, public=True)
    assert not any(hub.private.values())
    cards = {
        what: hub.files(f"me/{what}", kind="datasets" if what == "store" else "models")[
            "README.md"
        ].decode()
        for what in ("encoder", "model", "store")
    }
    weights = json.loads((folders / "encoder" / "config.json").read_text())["weights_sha256"]
    assert all(weights in card for card in cards.values())
    assert cards["encoder"].startswith("---\nlibrary_name: loopjax\n")
    assert "license: mit\n" in cards["encoder"]
    assert "license: other\n" in cards["model"]
    assert "| detector | knn |" in cards["model"]
    assert "| loops | 12 |" in cards["store"]
    assert "data_files: part-*.parquet" in cards["store"]
    assert "loopjax pull hf://datasets/me/store" in cards["store"]


def test_names_stand_where_encoders_models_and_stores_do(hub, folders, tmp_path, capsys):
    names = {
        what: str(push(folders / what, f"me/{what}", allow_http=True))
        for what in ("encoder", "model", "store")
    }
    for name in names.values():
        pull(name, allow_http=True)
    n_asked = len(hub.asked)
    loop = folders / "loops" / "00.wav"
    encoder = ["--encoder", names["encoder"], "--workers", "1"]
    assert main(["embed", str(loop), "-o", str(tmp_path / "e"), *encoder]) == 0
    made = loopjax.read_embeddings(tmp_path / "e")
    kept = loopjax.read_embeddings(names["store"])
    assert Space.from_metadata(made.metadata).location == names["encoder"]
    assert len(kept) == 12
    row = kept.table["path"].to_pylist().index(made.table["path"][0].as_py())
    np.testing.assert_array_equal(made.matrix[0], kept.matrix[row])
    assert main(["score", names["model"], names["store"], "-o", str(tmp_path / "a.csv")]) == 0
    here = [str(folders / "model"), str(folders / "store"), "-o", str(tmp_path / "b.csv")]
    assert main(["score", *here]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert main(["fit", names["store"], "-o", str(tmp_path / "m"), "--detector", "pca"]) == 0
    assert loopjax.load_model(tmp_path / "m").embeddings_path == str(place_of(names["store"]))
    assert main(["similar", names["store"], kept.table["id"][row].as_py(), "-k", "2"]) == 0
    capsys.readouterr()
    assert len(hub.asked) == n_asked  # nobody but `pull` asks the network
    for args in (["score", "hf://me/none", str(loop)], ["fit", "hf://datasets/me/none", "-o", "x"]):
        assert main(args) == 2
        assert f"is not on this machine yet: loopjax pull {args[1]}" in capsys.readouterr().err


def test_a_new_push_replaces_what_was_there_and_a_branch_follows_at_a_pull(hub, folders, tmp_path):
    first = push(folders / "store", "me/s", allow_http=True)
    pull(str(first.at("main")), allow_http=True)
    changed = tmp_path / "store"
    shutil.copytree(folders / "store", changed)
    (part,) = changed.glob("part-*.parquet")
    part.rename(changed / "part-00007.parquet")
    second = push(changed, "me/s", allow_http=True)
    assert second != first
    assert part.name not in hub.files("me/s", kind="datasets")
    assert hub_names.pulled(first.at("main")) == first  # until it is pulled again
    pull(str(first.at("main")), allow_http=True)
    assert hub_names.pulled(first.at("main")) == second
    assert part.name in content(place_of(str(first)))  # and the old one stays


def exchanged(files):
    return files | {"config.json": b"{}"}


def missing(files):
    return {path: data for path, data in files.items() if path != "config.json"}


def listed_as(path):
    def change(files):
        text = files[MANIFEST_NAME].replace(b'"config.json"', json.dumps(path).encode())
        return files | {MANIFEST_NAME: text}

    return change


def of_others(files):
    return {"README.md": b"something else"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (exchanged, "config.json .* has sha256 .* instead of"),
        (missing, "404 .* Entry Not Found"),
        (of_others, "404 .* Entry Not Found"),
        *((listed_as(p), "is no file of") for p in ("../config.json", "/a", "a/../b", "a\\b", "")),
    ],
)
def test_what_is_not_as_listed_is_not_kept(hub, folders, change, message):
    name = push(folders / "model", "me/m", allow_http=True)
    bad = name.at(hub.commit("me/m", change(hub.files("me/m"))))
    with pytest.raises(UserError, match=message):
        pull(str(bad), allow_http=True)
    assert not bad.folder.exists()
    assert not [p for p in bad.folder.parent.glob("*") if p.name != "revisions"]


def test_mistakes_are_one_line_and_nothing_is_asked(hub, folders, tmp_path, capsys, monkeypatch):
    store = str(folders / "store")
    for args, message in (
        (["push", str(tmp_path), "me/x"], "is neither an encoder nor a model nor a store"),
        (["push", store, "hf://me/x"], "a store is pushed to hf://datasets/OWNER/NAME"),
        (["push", store, "a b"], "expected hf://OWNER/NAME"),
        (["pull", "me/x"], "expected hf://OWNER/NAME"),
        (["pull", "hf://datasets/me/x", "-o", store], "is not empty"),
        (["pull", "hf://datasets/me/x", "-o", "hf://me/y"], "send that with `loopjax push`"),
    ):
        assert run(*args) == 2
        assert message in capsys.readouterr().err
    assert main(["pull", "hf://me/x"]) == 2
    assert "is not encrypted" in capsys.readouterr().err
    assert hub.asked == []
    assert run("pull", "hf://me/nothing") == 2
    assert "404" in capsys.readouterr().err


def test_without_a_network_one_line_says_so(hub, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run("pull", "hf://me/x") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("loopjax pull: ")


ATTEMPTS = """
import logging
from loopjax.hub.client import one_message
with one_message():
    import huggingface_hub.file_download
    logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
logging.getLogger("huggingface_hub.utils._http").warning("afterwards")
"""


def test_attempts_are_not_logged_even_where_the_client_is_loaded_late():
    done = subprocess.run([sys.executable, "-c", ATTEMPTS], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "afterwards")
