"""What is refused leaves nothing behind and says what to do."""

import numpy as np
import pytest
import soundfile

from loopjax.cli import main


@pytest.fixture
def loops(tmp_path):
    folder = tmp_path / "loops"
    (folder / "kick").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / "kick" / f"{i}.wav", 0.1 * rng.standard_normal(4000), 8000)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["embed", "loops", "-o", "loops"],
        ["embed", "loops/kick", "loops/kick/0.wav", "-o", "loops/../loops/kick"],
        ["embed", "loops", "-o", "loops", "--worker"],
        ["pack", "loops", "-o", "loops"],
    ],
    ids=" ".join,
)
def test_nothing_is_written_among_the_audio(command, loops, capsys, monkeypatch):
    monkeypatch.chdir(loops.parent)
    before = sorted(loops.rglob("*"))
    assert main(command) == 2
    assert "choose another -o" in capsys.readouterr().err
    assert sorted(loops.rglob("*")) == before


def test_a_folder_inside_the_source_is_no_source(loops, monkeypatch):
    monkeypatch.chdir(loops.parent)
    encoder = ["--encoder", "log-mel-statistics", "--workers", "1"]
    assert main(["embed", "loops", "-o", "loops/emb", *encoder]) == 0


@pytest.mark.parametrize("verb", ["embed", "score", "pack", "run"])
def test_an_empty_source_is_a_mistake(verb, loops, capsys, monkeypatch):
    monkeypatch.chdir(loops / "kick")  # what an empty path could mean
    np.save(loops.parent / "m.npy", np.random.default_rng(0).standard_normal((40, 4)))
    first = {"score": [str(loops.parent / "model")], "run": ["baselines"]}.get(verb, [])
    if verb == "score":
        assert main(["fit", str(loops.parent / "m.npy"), "-o", *first, "--detector", "pca"]) == 0
    assert main([verb, *first, "", "-o", str(loops.parent / "out")]) == 2
    assert "a source is empty" in capsys.readouterr().err
    assert not (loops.parent / "out").exists()


def test_a_refused_run_leaves_no_folder(loops, capsys, monkeypatch):
    monkeypatch.chdir(loops.parent)
    for words in (["--set", "embed.encoder=nothing"], ["--set", "embed.include=[nowhere]"]):
        assert main(["run", "baselines", "loops", "-o", "out/run", *words]) == 2
        assert not (loops.parent / "out" / "run").exists()
    (loops.parent / "mine").mkdir()
    assert main(["run", "baselines", "nowhere", "-o", "mine"]) == 2
    assert (loops.parent / "mine").exists()
    assert not [p for p in (loops.parent / "mine").iterdir() if not p.name.startswith(".")]
