"""Fault matrix row 50: encoders that are not there, or not what they claim to be."""

import json
import socket

import pytest

from loopjax.encoders.encoder import random_weights
from loopjax.encoders.load import load_encoder
from loopjax.encoders.storage import save_encoder
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig

pytestmark = pytest.mark.faults

SMALL = HtsatConfig.nano(width=16, depths=(1, 1, 1), heads=(1, 2, 4))


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to connect fails the test at once."""

    def refuse(*args, **kwargs):
        raise AssertionError("tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def encoder_folder(tmp_path):
    folder = tmp_path / "encoder"
    weights = random_weights(SMALL, 0)
    save_encoder(folder, SMALL, LogMelConfig(), weights, encoder_id="small", about={})
    return folder


@pytest.mark.timeout(60)
def test_unknown_encoder_is_a_clear_message(no_network):
    with pytest.raises(UserError, match="no encoder 'nobody/nothing'"):
        load_encoder("nobody/nothing")


def test_wrong_hash_is_refused(no_network, encoder_folder):
    record = json.loads((encoder_folder / "config.json").read_text())
    record["weights_sha256"] = "0" * 64
    (encoder_folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="hash"):
        load_encoder(encoder_folder)


def test_partial_download_is_refused(no_network, encoder_folder):
    files = [f for f in (encoder_folder / "weights").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        load_encoder(encoder_folder)
