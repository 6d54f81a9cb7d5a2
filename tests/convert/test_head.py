"""The reference's trained heads become Deep SVDD folders that give the reference's scores."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from loopjax.convert.checkpoint import convert
from loopjax.detectors.storage import load_detector
from loopjax.errors import UserError, WriteError
from loopjax.model import load_model
from scripts.fuzz.torch_files import Call, Global, Storage, TorchPickler, tensor, write_torch

WIDTHS = (24, 16, 8, 4)
RNG = np.random.default_rng(4)


def state(decoder: bool = False) -> dict[str, np.ndarray]:
    """The reference's names: the last layer is a bare linear map, the others carry BatchNorm."""
    made = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(WIDTHS)):
        name = f"encoder.layers.{i}"
        made[f"{name}.linear.weight"] = RNG.normal(size=(n_out, n_in)).astype(np.float32)
        if n_out != WIDTHS[-1]:
            made[f"{name}.bn.weight"] = 1 + 0.3 * RNG.normal(size=n_out).astype(np.float32)
            made[f"{name}.bn.bias"] = RNG.normal(size=n_out).astype(np.float32)
            made[f"{name}.bn.running_mean"] = RNG.normal(size=n_out).astype(np.float32)
            made[f"{name}.bn.running_var"] = RNG.uniform(1, 9, size=n_out).astype(np.float32)
            made[f"{name}.bn.num_batches_tracked"] = np.array(17)
    if decoder:
        made["decoder.layers.0.linear.weight"] = np.zeros((8, 4), np.float32)
    return made


def reference_scores(weights: dict, center: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Linear, BatchNorm, ELU, layer by layer in float64; mean squared distance to the center."""
    x = rows.astype(np.float64)
    for i in range(len(WIDTHS) - 1):
        x = x @ weights[f"encoder.layers.{i}.linear.weight"].T
        if f"encoder.layers.{i}.bn.weight" in weights:
            norm, shift, mean, var = (
                weights[f"encoder.layers.{i}.bn.{leaf}"].astype(np.float64)
                for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            x = (x - mean) / np.sqrt(var + 1e-5) * norm + shift
            x = np.where(x > 0, x, np.expm1(x))
    return np.square(x - center).mean(axis=1)


def pickled_tensor(values: np.ndarray) -> bytes:
    """A lone tensor as `pickle.dump` writes it: its storage in the format of before 1.6."""
    inner = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        TorchPickler(inner).dump(value)
    TorchPickler(inner).dump(Storage("FloatStorage", 7, values.size))
    TorchPickler(inner).dump(["7"])
    inner.write(values.size.to_bytes(8, "little") + values.astype("<f4").tobytes())
    stream = io.BytesIO()
    raw = Call(Global("_codecs", "encode"), (inner.getvalue().decode("latin1"), "latin1"))
    storage = Call(Global("torch.storage", "_load_from_bytes"), (raw,))
    TorchPickler(stream).dump(tensor(storage, 0, values.shape, (1,)))
    return stream.getvalue()


@pytest.fixture
def head(tmp_path):
    """A one-class checkpoint with its center inside, as Lightning writes it."""
    weights, center = state(), RNG.normal(size=4).astype(np.float32)
    content = {
        "state_dict": weights,
        "hyper_parameters": {"center": center, "learning_rate": 1e-5},
        "pytorch-lightning_version": "2.5.0",
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_path": "x"}},
    }
    file = write_torch(tmp_path / "AEwRES-bass-DSVDD-epoch=88-val_loss=0.00.ckpt", content)
    return file, weights, center


def test_scores_equal_the_references(head, tmp_path):
    file, weights, center = head
    rows = RNG.normal(size=(50, 24)).astype(np.float32)
    done = convert(file, tmp_path / "model", training_rows=rows)
    detector = load_detector(tmp_path / "model")
    expected = reference_scores(weights, center, rows)
    np.testing.assert_allclose(detector.decision_function(rows), expected, rtol=2e-5)
    np.testing.assert_allclose(detector.threshold_, np.quantile(expected, 0.95), rtol=2e-5)
    assert done.widths == WIDTHS
    assert done.stage == "one-class"
    assert detector.network == "residual"


def test_a_converted_head_is_a_model_like_any_other(head, tmp_path):
    file, weights, center = head
    rows = RNG.normal(size=(50, 24)).astype(np.float32)
    convert(file, tmp_path / "model", training_rows=rows)
    model = load_model(tmp_path / "model")
    assert model.name == file.stem
    assert model.space is None
    scores = model.score(rows).table
    order = np.argsort(scores["id"].to_pylist())
    expected = reference_scores(weights, center, rows)
    np.testing.assert_allclose(scores["score"].to_numpy()[order], expected, rtol=2e-5)


@pytest.mark.faults
def test_a_place_that_cannot_be_written_is_told_at_once(head):
    with pytest.raises(WriteError, match="cannot write /proc/nowhere/model"):
        convert(head[0], Path("/proc/nowhere/model"))


def test_a_given_threshold_is_kept(head, tmp_path):
    convert(head[0], tmp_path / "model", threshold=0.00465)
    assert load_detector(tmp_path / "model").threshold_ == 0.00465


def test_without_a_threshold_nothing_is_called_anomalous(head, tmp_path):
    done = convert(head[0], tmp_path / "model")
    detector = load_detector(tmp_path / "model")
    rows = 100 * RNG.normal(size=(5, 24)).astype(np.float32)
    assert "no threshold" in str(done)
    assert (detector.predict(rows) == 1).all()
    assert (detector.decision_function(rows) > 0).all()


@pytest.mark.parametrize("as_numpy", [False, True])
def test_an_autoencoder_takes_the_center_beside_it(tmp_path, as_numpy):
    weights, center = state(decoder=True), RNG.normal(size=4).astype(np.float32)
    file = write_torch(
        tmp_path / "AE-bass-AE-epoch=103-val_loss=0.02.ckpt", {"state_dict": weights}
    )
    given = None
    if as_numpy:
        given = tmp_path / "center.npy"
        np.save(given, center)
    else:
        beside = tmp_path / "AE-bass-AE-epoch=103-val_loss=0.02_z_vector.pkl"
        beside.write_bytes(pickled_tensor(center))
    done = convert(file, tmp_path / "model", center=given, threshold=1.0)
    rows = RNG.normal(size=(7, 24)).astype(np.float32)
    scores = load_detector(tmp_path / "model").decision_function(rows)
    np.testing.assert_allclose(scores, reference_scores(weights, center, rows), rtol=2e-5)
    assert "pretrained autoencoder" in str(done)


@pytest.mark.faults
def test_heads_that_do_not_fit(head, tmp_path):
    out = tmp_path / "model"

    def refusal(weights, **options) -> str:
        file = write_torch(tmp_path / "bad.ckpt", {"state_dict": weights})
        with pytest.raises(UserError) as caught:
            convert(file, out, **options)
        assert not out.exists()
        return str(caught.value)

    assert "no center vector" in refusal(state())
    center = tmp_path / "center.npy"
    np.save(center, np.zeros(4, np.float32))
    assert "encoder.layers.0.extra" in refusal(state() | {"encoder.layers.0.extra": center_array()})
    for shape in ((), (3,), (16, 24, 1), (0, 24)):
        odd = state() | {"encoder.layers.0.linear.weight": np.zeros(shape, np.float32)}
        assert "wrong shape: encoder.layers.0.linear.weight" in refusal(odd, center=center)
    gap = {name.replace("layers.1", "layers.7"): array for name, array in state().items()}
    assert "missing in the file: encoder.layers.1.linear.weight" in refusal(gap, center=center)
    broken = state()
    broken["encoder.layers.1.linear.weight"][0, 0] = np.nan
    assert "encoder.layers.1.linear.weight" in refusal(broken, center=center)
    np.save(center, np.zeros(5, np.float32))
    assert "center has shape (5,)" in refusal(state(), center=center)
    hostile = tmp_path / "z_vector.pkl"
    hostile.write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    assert "os.system" in refusal(state(), center=hostile)
    incomplete = state()
    del incomplete["encoder.layers.1.bn.running_var"]
    np.save(center, np.zeros(4, np.float32))
    assert "layers/1/bn/var" in refusal(incomplete, center=center)


def center_array() -> np.ndarray:
    return np.zeros(3, np.float32)


def test_an_encoder_goes_the_other_way(tmp_path):
    """A checkpoint that is neither is reported by the encoder's key report."""
    file = write_torch(tmp_path / "x.pt", {"state_dict": {"fc.weight": center_array()}})
    with pytest.raises(UserError, match="no HTS-AT found"):
        convert(file, tmp_path / "out")
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["x.pt"]'
