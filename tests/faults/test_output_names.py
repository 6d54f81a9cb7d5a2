"""Names for `-o` that libraries stumble over: written, or refused before any work."""

import os
from pathlib import Path

import pytest

from loopjax.cli import main
from tests.audio_files import write_corpus

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A corpus, its store and a model."""
    folder = tmp_path_factory.mktemp("names")
    write_corpus(folder / "loops", 16, seconds=(0.1, 0.2))
    embed = ("--encoder", "log-mel-statistics", "--workers", "1")
    assert main(["embed", str(folder / "loops"), "-o", str(folder / "emb"), *embed]) == 0
    assert main(["fit", str(folder / "emb"), "-o", str(folder / "model"), "--detector", "pca"]) == 0
    return folder


def commands(work: Path) -> dict[str, list[str]]:
    store, model, loop = (str(work / name) for name in ("emb", "model", "loops/loop_00001.wav"))
    return {
        "embed": [str(work / "loops"), "--encoder", "log-mel-statistics", "--workers", "1"],
        "fit": [store, "--detector", "pca"],
        "score": [model, store],
        "explain": [model, loop],
    }


@pytest.mark.parametrize("verb", ["embed", "fit", "score", "explain"])
@pytest.mark.parametrize("name", ["a:b", "gs:x", "c:/x", "line\nbreak", "-x"])
def test_unusual_names_are_written(work, tmp_path, monkeypatch, verb, name):
    monkeypatch.chdir(tmp_path)
    assert main([verb, *commands(work)[verb], f"--out={name}"]) == 0
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("verb", ["embed", "fit", "score", "explain", "convert", "demo"])
@pytest.mark.parametrize(
    ("name", "code"), [("caf\udce9", 2), ("nul\0", 2), ("x" * 300, 6)], ids=["bytes", "NUL", "long"]
)
def test_impossible_names_are_refused_and_nothing_is_left(
    work, tmp_path, monkeypatch, capsys, verb, name, code
):
    monkeypatch.chdir(tmp_path)
    arguments = commands(work).get(verb, [] if verb == "demo" else [str(work / "model")])
    if verb == "demo" and code == 6:
        pytest.skip("embeds first")
    assert main([verb, *arguments, f"--out={name}"]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert not os.listdir(tmp_path)  # noqa: PTH208


@pytest.mark.parametrize("verb", ["embed", "fit", "score", "explain"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_no_file_is_put_in_the_place_of_a_device(work, tmp_path, capsys, verb, kind):
    """A file under a temporary name that takes the place of `/dev/null` breaks the machine."""
    place = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/null")
    before = place.lstat()
    assert main([verb, *commands(work)[verb], f"--out={place}"]) == 2
    assert f"{place} is a device or pipe" in capsys.readouterr().err
    assert place.lstat().st_ino == before.st_ino
