"""Saved models and encoders that are damaged: named in plain words, or still what they were."""

import json
import shutil

import numpy as np
import pytest

from loopjax.arrays import SUMS_NAME
from loopjax.cli import main
from loopjax.detectors import make_detector
from loopjax.detectors.storage import load_detector, save_detector
from loopjax.encoders.encoder import random_weights
from loopjax.encoders.storage import read_encoder, save_encoder
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

ROWS = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
SMALL = HtsatConfig.nano(width=16, depths=(1, 1), heads=(1, 2))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    return save_detector(make_detector("knn").fit(ROWS), folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "encoder"
    front_end, weights = LogMelConfig.clap_fused(), random_weights(SMALL)
    save_encoder(folder, SMALL, front_end, weights, encoder_id="small", about={}, probe=False)
    return folder


def flips(folder, arrays):
    """Copies of a folder, each with one byte of one file of its arrays turned over."""
    names = [f.relative_to(folder) for f in sorted((folder / arrays).rglob("*")) if f.is_file()]
    for name in names:
        size = (folder / name).stat().st_size
        for at in sorted({0, size // 2, size - 1} if size else ()):
            copy = folder.parent / "flipped"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            raw = bytearray((copy / name).read_bytes())
            raw[at] ^= 0x55
            (copy / name).write_bytes(bytes(raw))
            yield f"{name} at {at}", copy


def test_a_flipped_byte_in_a_detectors_arrays_is_named(detector, capfd):
    require_flips_named(detector, "arrays", load_detector)
    assert "Traceback" not in capfd.readouterr().err


def require_flips_named(folder, part, load):
    n_flips = 0
    for _, copy in flips(folder, part):
        with pytest.raises(UserError, match=f"flipped/{part}"):
            load(copy)
        n_flips += 1
    assert n_flips > 12


def test_without_checksums_a_detector_is_refused_or_scores_as_before(detector, tmp_path, capfd):
    """Models of earlier versions have no checksums of their files, only of their arrays."""
    old = tmp_path / "old"
    shutil.copytree(detector, old)
    (old / "arrays" / SUMS_NAME).unlink()
    expected, refused = load_detector(old).decision_function(ROWS), 0
    for label, copy in flips(old, "arrays"):
        try:
            found = load_detector(copy).decision_function(ROWS)
        except UserError as error:
            assert "flipped" in str(error), label
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected, label)
    assert refused > 5
    assert "Traceback" not in capfd.readouterr().err


def test_a_flipped_byte_in_an_encoders_weights_is_named(encoder, capfd):
    require_flips_named(encoder, "weights", read_encoder)
    assert "Traceback" not in capfd.readouterr().err


WRONG_VALUES = {
    "architecture": [None, 3, "x", [], {}],
    "architecture.width": ["16", 16.5, -16, 0, None, 10**40],
    "architecture.depths": [2, [], ["1", "1"], [1, -1], [1, 1, 1, 1, 1, 1, 1, 1, 1]],
    "architecture.heads": [0, [0, 0], [1]],
    "architecture.fusion": ["yes", None],
    "architecture.patch": [0, "8", 3],
    "architecture.window": [0, 7, None],
    "architecture.unknown": [1],
    "front_end": [None, [], "x"],
    "front_end.sample_rate_hz": ["48000", 0, -1, None, 1e308],
    "front_end.n_fft": [0, "x", 10**15],
    "front_end.hop_samples": [0, -480, None],
    "front_end.mel_scale": ["bark", 3, []],
    "front_end.filling": ["none", None],
    "front_end.fmax_hz": [float("nan"), float("inf"), "x"],
    "front_end.clip_samples": [0, -1, "x", 10**15],
    "weights_sha256": [None, 5, "0" * 64, []],
    "id": [None, 5, [], "", "  "],
    "about": [None, [], 3, {"assumptions": 3}],
    "format": [None, 3, []],
}


@pytest.mark.parametrize("place", WRONG_VALUES)
def test_wrong_values_in_an_encoders_record_are_named(encoder, place, tmp_path, loop, capfd):
    for value in WRONG_VALUES[place]:
        copy = tmp_path / "encoder"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(encoder, copy)
        record = json.loads((copy / "config.json").read_text("utf-8"))
        *parents, name = place.split(".")
        section = record[parents[0]] if parents else record
        section[name] = value
        (copy / "config.json").write_text(json.dumps(record), "utf-8")
        out = tmp_path / "emb"
        assert main(["embed", str(loop), "-o", str(out), "--encoder", str(copy)]) == 2, value
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert str(copy) in said, (value, said)
        assert not out.exists()


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    from tests.audio_files import write_tone

    folder = tmp_path_factory.mktemp("loop")
    write_tone(folder / "a.wav")
    return folder
