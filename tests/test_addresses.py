"""Addresses of other file systems are told apart from folders before anything is written."""

from pathlib import Path

import pytest

from loopjax.cli import main
from loopjax.errors import UserError
from loopjax.io import write_text


@pytest.mark.parametrize("verb", [("fit", "emb"), ("demo",)])
@pytest.mark.parametrize("out", ["gs://bucket/emb", "s3://bucket/emb"])
def test_no_local_folder_of_that_name(tmp_path, monkeypatch, capsys, verb, out):
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "-o", out]) == 2
    error = capsys.readouterr().err
    assert out in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_an_address_that_nothing_installed_knows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    embed = ["embed", "bundled:demo", "--encoder", "log-mel-statistics"]
    assert main([*embed, "-o", "nosuch://bucket/emb"]) == 2
    assert "nosuch://bucket/emb" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_may_be_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://a"):
        write_text(Path("gs:/a"), "x")
    (tmp_path / "gs:").mkdir()
    write_text(Path("gs:/a"), "x")
    assert (tmp_path / "gs:" / "a").read_text() == "x"
