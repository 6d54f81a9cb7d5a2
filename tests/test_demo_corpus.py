import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import loopjax

FOLDER = Path(loopjax.__file__).parent / "data" / "demo"
KINDS = {
    "other_instrument",
    "wrong_tuning",
    "clipping",
    "noise",
    "off_grid",
    "dropouts",
    "silence",
    "reversed",
}


@pytest.fixture(scope="module")
def rows():
    with (FOLDER / "labels.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def sounds(rows):
    return {row["file"]: sf.read(FOLDER / row["file"], dtype="float32") for row in rows}


def test_labels_and_files_match_one_to_one(rows):
    assert sorted(row["file"] for row in rows) == sorted(p.name for p in FOLDER.glob("*.ogg"))
    assert len({row["file"] for row in rows}) == len(rows) == 150


def test_normal_loops_outnumber_anomalies_of_every_kind(rows):
    kinds = Counter(row["anomaly_kind"] for row in rows if row["is_anomaly"] == "1")
    assert set(kinds) == KINDS
    assert sum(kinds.values()) == 35
    assert min(kinds.values()) >= 2
    normal = [row for row in rows if row["is_anomaly"] == "0"]
    assert Counter(row["family"] for row in normal) == {"bass": 58, "guitar": 57}
    assert {row["anomaly_kind"] for row in normal} == {"none"}


def test_folder_fits_its_budget():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 6_000_000


def test_every_loop_decodes_to_its_labeled_length(rows, sounds):
    for row in rows:
        samples, rate_hz = sounds[row["file"]]
        assert rate_hz == 32000
        assert samples.ndim == 1
        assert np.isfinite(samples).all()
        assert len(samples) / rate_hz == pytest.approx(float(row["duration_s"]), abs=0.002)
        assert 1.0 <= len(samples) / rate_hz <= 6.5


def test_normal_loops_are_neither_silent_nor_clipped(rows, sounds):
    for row in rows:
        if row["is_anomaly"] == "0":
            samples, _ = sounds[row["file"]]
            level_db = 20 * np.log10(np.sqrt(np.mean(samples**2)))
            assert -30 < level_db < -10, row["file"]
            assert np.abs(samples).max() < 0.9, row["file"]


def test_names_and_levels_do_not_reveal_anomalies(rows, sounds):
    position = {"normal": [], "odd": []}
    for row in rows:
        assert row["file"].startswith(row["family"])
        number = int(row["file"].split("_")[1].split(".")[0])
        position["odd" if row["is_anomaly"] == "1" else "normal"].append(number)
    assert abs(np.mean(position["odd"]) - np.mean(position["normal"])) < 12


def test_planted_changes_are_in_the_sound(rows, sounds):
    def silent_share(name):
        samples, _ = sounds[name]
        frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
        return float(np.mean(np.abs(frames).max(axis=1) < 1e-4))

    def crest_db(name):
        samples, _ = sounds[name]
        return float(20 * np.log10(np.abs(samples).max() / np.sqrt(np.mean(samples**2))))

    of_kind = {k: [r for r in rows if r["anomaly_kind"] == k] for k in (*KINDS, "none")}
    for row in of_kind["silence"] + of_kind["dropouts"]:
        assert silent_share(row["file"]) > 0.6 * float(row["strength"]), row["file"]
    usual_crest_db = np.median([crest_db(r["file"]) for r in of_kind["none"]])
    for row in of_kind["clipping"]:
        assert crest_db(row["file"]) < usual_crest_db - 3, row["file"]
