"""Curves of training reach the file, TensorBoard and Weights & Biases alike."""

import errno
import json
import struct
import subprocess
import sys

import pytest

from loopjax.errors import UserError, WriteError
from loopjax.training.sinks import JsonLines, open_sinks, read_epochs, reporting, require_sinks

CURVE = [("pretrain", 0, {"train_loss": 2.0}), ("one-class", 0, {"train_loss": 0.5, "k": 1.0})]


def test_a_line_per_epoch_is_there_at_once(tmp_path):
    report = reporting("residual", [0, 1], [JsonLines(tmp_path / "new" / "metrics.jsonl")])
    for i, epoch in enumerate(CURVE, 1):
        report(*epoch)
        lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == i
    assert json.loads(lines[1]) == {
        "detector": "residual", "seeds": [0, 1], "stage": "one-class", "epoch": 0,
        "train_loss": 0.5, "k": 1.0,
    }  # fmt: skip
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write"):
        reporting("r", [0], [JsonLines(tmp_path / "file" / "m.jsonl")])(*CURVE[0])


def test_tensorboard_has_the_same_numbers(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    with open_sinks(["tensorboard", "tensorboard"], tmp_path) as sinks:
        assert len(sinks) == 2  # and the lines
        report = reporting("residual", [0], sinks)
        for epoch in CURVE:
            report(*epoch)
    (file,) = (tmp_path / "tb").iterdir()
    data, found = file.read_bytes(), []
    while data:  # TFRecord: length, its checksum, payload, its checksum
        (size,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    assert found == [
        ("residual/pretrain/train_loss", 0, 2.0),
        ("residual/one-class/train_loss", 0, 0.5),
        ("residual/one-class/k", 0, 1.0),
    ]
    with open_sinks(["tensorboard"], tmp_path, read_epochs(tmp_path)[:1]):
        assert len(read_epochs(tmp_path)) == 1
    (file,) = (tmp_path / "tb").iterdir()
    assert file.read_bytes().count(b"residual/pretrain") == 1
    assert b"residual/one-class" not in file.read_bytes()


def test_a_full_disk_ends_a_training_that_writes_tensorboard(tmp_path, monkeypatch):
    record_writer = pytest.importorskip("tensorboardX.record_writer")

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(WriteError, match=r"cannot write .*tb: No space left on device"),
        open_sinks(["tensorboard"], tmp_path) as sinks,
    ):
        monkeypatch.setattr(record_writer.RecordWriter, "write", write)
        for epoch in range(100):  # more than a queue of any thread would take
            reporting("residual", [0], sinks)("pretrain", epoch, {"train_loss": 2.0})


def test_lines_are_read_again_as_they_were_written(tmp_path):
    report = reporting("residual", [0, 1], [JsonLines(tmp_path / "metrics.jsonl")])
    for epoch in CURVE:
        report(*epoch)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").open("a").write('{"detector": "resid')  # cut by a kill
    found = read_epochs(tmp_path)
    assert [(e.detector, e.seeds, e.stage, e.epoch, e.metrics) for e in found] == [
        ("residual", (0, 1), *epoch) for epoch in CURVE
    ]
    JsonLines(tmp_path / "metrics.jsonl", found)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


OFFLINE = """
import socket, sys
from pathlib import Path
from loopjax.training.sinks import open_sinks, reporting

def refuse(self, address):
    host = address[0] if isinstance(address, tuple) else "local"
    assert host in ("local", "127.0.0.1", "localhost", "::1"), address
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, refuse
with open_sinks(["wandb"], Path(sys.argv[1])) as sinks:
    reporting("residual", [0], sinks)("pretrain", 0, {"train_loss": 2.0})
"""


@pytest.mark.slow
def test_weights_and_biases_stays_offline_and_below_the_folder(tmp_path):
    pytest.importorskip("wandb")
    subprocess.run([sys.executable, "-c", OFFLINE, tmp_path], check=True, timeout=120)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    assert b"residual/pretrain/train_loss" in log.read_bytes()


def test_a_logger_that_is_missing_is_named_before_any_work(monkeypatch):
    with pytest.raises(UserError, match="no logger 'mlflow'; there are tensorboard, wandb"):
        require_sinks(["mlflow"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'loopjax\[wandb\]'"):
        require_sinks(["wandb"])
