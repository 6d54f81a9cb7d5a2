"""Files and folders that are there completely or not at all."""

import json
import os
from pathlib import Path

import pytest

from loopjax.errors import WriteError
from loopjax.io import write_atomically, write_folder, write_json


def test_json_goes_into_folders_that_are_not_there_yet(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": [1, None]}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_writes_leave_nothing_and_keep_the_old_file(tmp_path, error):
    path = tmp_path / "a.json"
    write_json(path, 1)

    def half(temporary: Path) -> None:
        temporary.write_text("[")
        raise error

    with pytest.raises((WriteError, KeyboardInterrupt)) as stop:
        write_atomically(path, half)
    if isinstance(error, OSError):
        assert str(stop.value) == f"cannot write {path}: No space left on device"
    assert json.loads(path.read_text()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    order: list[str] = []
    plain = Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync"))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append("rename"), plain(self, to))[1]
    )
    write_json(tmp_path / "a.json", 1)
    assert order == ["fsync", "rename", "fsync"]


def test_a_folder_is_written_completely_or_not_at_all(tmp_path):
    folder = tmp_path / "model"

    def write(temporary):
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("new")

    write_folder(folder, write)
    assert (folder / "inner" / "a").read_text() == "new"

    def fail(temporary):
        (temporary / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match="No space left"):
        write_folder(folder, fail)
    assert (folder / "inner" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
