import numpy as np
import pyarrow as pa
import pytest
import soundfile

from loopjax.audio.perturb import PERTURBATIONS
from loopjax.embedding.samples import embed_arrays
from loopjax.errors import UserError
from loopjax.evaluation.robustness import win_matrix
from loopjax.experiment.robustness import QUICK_LEVELS, measure_robustness
from tests.spectrum_encoder import RATE, DistanceDetector, SpectrumEncoder, tone


class CountingEncoder(SpectrumEncoder):
    calls = 0
    preprocessing = None

    def encode(self, mel, longer):
        self.calls += 1
        return super().encode(mel, longer)


class BlindDetector:
    """Gives every loop the same score."""

    def decision_function(self, rows):
        return np.zeros(len(rows))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Ten loops in one folder, whose names tell two families."""
    folder = tmp_path_factory.mktemp("loops")
    rows = []
    for k in range(10):
        family, hz = ("bass", 110) if k % 2 else ("guitar", 440)
        path = folder / f"{family}_{k:03d}.wav"
        t = np.arange(RATE) / RATE
        samples = tone(hz * (1 + 0.01 * k), 1.0) * np.exp(-8 * (t % 0.25))
        soundfile.write(path, samples.astype(np.float32), RATE, "PCM_16")
        rows.append((f"id-{k}", bytes(path), "loops"))
    ids, paths, groups = zip(*rows, strict=True)
    return pa.table({"id": ids, "path_bytes": paths, "group": groups})


@pytest.fixture(scope="module")
def center(table):
    arrays = [
        soundfile.read(p.decode(), dtype="float32")[0] for p in table["path_bytes"].to_pylist()
    ]
    return embed_arrays(arrays, SpectrumEncoder(), RATE).mean(0)


@pytest.fixture(scope="module")
def finished(table, center, tmp_path_factory):
    out = tmp_path_factory.mktemp("robustness")
    models = {"distance": [DistanceDetector(center)], "blind": [BlindDetector()]}
    encoder = CountingEncoder()
    return measure_robustness(table, models, encoder, out, quick=True), out, models, encoder


def test_every_perturbation_is_measured_at_every_level(finished):
    result, _, _, _ = finished
    seen = {(row.perturbation, row.level, row.detector) for row in result.points}
    assert len(seen) == len(PERTURBATIONS) * len(QUICK_LEVELS) * 2
    for row in result.points:
        assert 0 <= row.auroc.low <= row.auroc.value <= row.auroc.high <= 1
        assert row.n_loops == 10


def test_a_blind_detector_is_at_chance_and_a_seeing_one_is_not(finished):
    result, _, _, _ = finished
    for row in result.points:
        if row.detector == "blind":
            assert row.auroc.value == pytest.approx(0.5)
    noise = {
        row.level: row.auroc.value
        for row in result.points
        if (row.perturbation, row.detector) == ("noise", "distance")
    }
    assert noise[5] > 0.95
    assert noise[5] >= noise[1]


def test_tables_name_all_detectors_and_only_the_cache_is_written(finished):
    result, out, _, _ = finished
    by_severity, by_perturbation = result.tables
    assert [row["detector"] for row in by_severity.rows] == ["distance", "blind"]
    distance = by_severity.rows[0]
    assert distance["more_severe_half"].value >= distance["milder_half"].value
    assert [row["perturbation"] for row in by_perturbation.rows] == list(PERTURBATIONS)
    assert {"distance", "blind"} <= set(by_perturbation.columns)
    assert {path.suffix for path in out.iterdir()} == {".npy"}


def test_a_second_run_embeds_only_the_originals_and_agrees(finished, table):
    result, out, models, encoder = finished
    before = encoder.calls
    again = measure_robustness(table, models, encoder, out, quick=True)
    assert encoder.calls - before == 2  # ten originals in batches of eight
    assert again == result


def test_a_killed_run_continues(finished, table):
    result, out, models, _ = finished
    victim = next(out.glob("noise-3-*.npy"))
    victim.unlink()
    encoder = CountingEncoder()
    assert measure_robustness(table, models, encoder, out, quick=True) == result
    assert encoder.calls == 4
    assert victim.exists()


def test_other_weights_do_not_reuse_the_cache(finished, table):
    _, out, models, _ = finished
    encoder = CountingEncoder()
    encoder.weights_sha256 = "1" * 64
    measure_robustness(table, models, encoder, out, quick=True)
    assert encoder.calls > 50


def test_too_few_loops_is_a_user_error(table, tmp_path):
    with pytest.raises(UserError, match="at least 5 held-out"):
        measure_robustness(table.slice(0, 3), {}, CountingEncoder(), tmp_path)


def test_one_family_leaves_out_the_splice(table, center, tmp_path):
    bass = table.filter(pa.array([k % 2 == 1 for k in range(10)]))
    lines = []
    result = measure_robustness(
        bass, {"d": [DistanceDetector(center)]}, CountingEncoder(), tmp_path, quick=True,
        log=lines.append,
    )  # fmt: skip
    assert "foreign splice" not in {row.perturbation for row in result.points}
    assert any("left out" in line for line in lines)


def test_auroc_of_wins_equals_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    originals, copies = rng.normal(size=(3, 20)).round(1), (rng.normal(size=(3, 20)) + 1).round(1)
    wins = win_matrix(copies, originals)
    labels = np.r_[np.zeros(20), np.ones(20)]
    wanted = [roc_auc_score(labels, np.r_[originals[k], copies[k]]) for k in range(3)]
    assert wins.mean() == pytest.approx(np.mean(wanted))
