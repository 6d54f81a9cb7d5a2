"""A package of an extra that is missing: one line that names the extra, exit code 2."""

import shutil
import sys
from pathlib import Path

import pytest

from loopjax.cli import main
from loopjax.embedding.chain import embed
from loopjax.errors import UserError
from loopjax.store.failures import read_failures
from tests.audio_files import write_tone
from tests.fake_encoder import FakeEncoder

M4A = Path(__file__).parents[1] / "audio" / "data" / "aac.m4a"


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("matplotlib", "report", ["run", "demo", "-o", "out"]),
        ("jinja2", "report", ["run", "demo", "-o", "out"]),
        ("pedalboard", "eval", ["run", "robustness", "--quick", "-o", "out"]),
        ("huggingface_hub", "hub", ["encoders", "pull", "clap-htsat-fused"]),
        ("datasets", "hf", ["embed", "hf:some/loops", "-o", "out"]),
        ("fsspec", "remote", ["embed", "s3://bucket/loops", "-o", "out"]),
    ],
)
def test_one_line_names_the_extra(package, extra, arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert f"pip install 'loopjax[{extra}]'" in line


def test_the_decoders_of_other_formats_are_named_in_the_row(monkeypatch, tmp_path, capsys):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "av.py").write_text("raise ImportError(name='av')")
    paths = [str(tmp_path / "blocked"), *sys.path]
    monkeypatch.setattr(sys, "path", paths)  # which the decoder processes take over
    (tmp_path / "loops").mkdir()
    write_tone(tmp_path / "loops" / "a.wav")
    shutil.copy(M4A, tmp_path / "loops")
    out = tmp_path / "store"
    command = ["embed", str(tmp_path / "loops"), "-o", str(out), "--encoder", "log-mel-statistics"]
    assert main([*command, "--workers", "1"]) == 3
    (row,) = read_failures(out).to_pylist()
    assert row["reason"] == "unsupported_format"
    assert "pip install 'loopjax[codecs]'" in row["message"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_frames_without_their_package(package, monkeypatch, tmp_path):
    write_tone(tmp_path / "a.wav")
    rows = embed(tmp_path, FakeEncoder())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: .*loopjax\[interop\]"):
        getattr(rows, f"to_{package}")()
