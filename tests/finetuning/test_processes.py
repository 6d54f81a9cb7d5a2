"""Trainings in processes of their own: killed, on eight devices, and two over loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopjax.config import to_dict
from scripts.faults.kill_finetune import main as kill_finetune
from tests.finetuning.tiny import tiny_config, write_encoder, write_loops

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The file of a training with parts, a head and mixed-in loops; one loop is long."""
    folder = tmp_path_factory.mktemp("processes")
    config = tiny_config(
        write_loops(folder / "loops"),
        write_encoder(folder / "encoder"),
        optimizer={"batch_size": 16, "accumulate": 2},
        objective={"projection": 4},
        augment={"mix_db": -10.0},
    )
    path = folder / "config.yaml"
    path.write_text(json.dumps(to_dict(config)), "utf-8")
    return path


def start(settings: Path, out: Path, *options: str, n_devices: int = 1) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "loopjax", "finetune", str(settings), "-o", str(out), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )


def curve(out: Path) -> np.ndarray:
    """Loss, spread and norm of the gradient of every step, and the held-out losses."""
    rows = json.loads((out / "finetune.json").read_text("utf-8"))["curve"]
    return np.array([[np.nan if v is None else v for v in row.values()] for row in rows])


ONE_SUM = """
import re, jax, numpy as np
from loopjax import parallel
from loopjax.config.finetuning import AugmentConfig, ObjectiveConfig
from loopjax.config.finetuning import OptimizerConfig, TrainableConfig
from loopjax.finetuning.network import build_network, split_weights
from loopjax.finetuning.objectives import Rows, make_objective
from loopjax.finetuning.steps import Batch, make_steps, place_batch
from tests.finetuning.tiny import tiny_encoder

encoder, trainable, mesh = tiny_encoder(), TrainableConfig("all"), parallel.global_mesh()
network = build_network(encoder.config, trainable, "fp32", remat=False)
trained, frozen = split_weights(network, encoder, trainable, 0)
steps = make_steps(
    network, make_objective(ObjectiveConfig(), encoder.embedding_dim, 0), frozen, mesh,
    optimizer=OptimizerConfig(), augmentation=AugmentConfig(), anchor=0.1, start=trained, seed=0,
)
place = np.arange(4, dtype=np.int32)[None]
rows = Rows(np.ones((1, 4), bool), place.astype(np.uint32), 0 * place, np.zeros((1, 4, 0), "f4"))
mel = np.zeros((1, 4, 1, 1001, 64), np.float32)
batch = place_batch(Batch(mel, np.zeros((1, 4), bool), place, place, rows), mesh)
state = steps.start({"encoder": trained, "head": {}})
program = jax.jit(steps.train).lower(state, batch).compile().as_text()
sums = re.findall(r"= (.*) all-reduce(?:-start)?\\(", program)
n_numbers = sum(w.size for w in trained.values()) + 2 + encoder.embedding_dim
assert sums == [f"f32[{n_numbers}]{{0}}"], sums
"""


def test_gradients_of_devices_meet_in_one_sum():
    flags = "--xla_force_host_platform_device_count=2"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ONE_SUM], check=True, env=env, timeout=120)


@pytest.fixture(scope="module")
def single(settings, tmp_path_factory):
    """The curve on one device."""
    out = tmp_path_factory.mktemp("single") / "run"
    process = start(settings, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return curve(out)


def test_eight_devices_give_the_curve_of_one(settings, single, tmp_path):
    process = start(settings, tmp_path / "run", n_devices=8)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    np.testing.assert_allclose(curve(tmp_path / "run"), single, rtol=1e-4, atol=1e-6)


def start_pair(settings: Path, out: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    group = ("--coordinator", address, "--processes", "2", "--process-index")
    return [start(settings, out, *group, str(index)) for index in range(2)]


def test_two_processes_give_the_curve_of_one(settings, single, tmp_path):
    for process in start_pair(settings, tmp_path / "run"):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    np.testing.assert_allclose(curve(tmp_path / "run"), single, rtol=1e-4, atol=1e-6)


def test_two_processes_count_together_what_they_could_not_read(tmp_path):
    loops = write_loops(tmp_path / "loops", 26, long=False)
    for file in sorted(loops.rglob("*.wav"))[:6]:
        file.write_bytes(b"RIFF" + file.name.encode())
    changes = {
        "data": {"holdout": 0.0},
        "optimizer": {"batch_size": 26},  # 13 of the first batch are each process's
        "embed": {"max_failures": 0.2},
    }
    config = tiny_config(loops, write_encoder(tmp_path / "encoder"), **changes)
    (tmp_path / "config.yaml").write_text(json.dumps(to_dict(config)), "utf-8")
    for process in start_pair(tmp_path / "config.yaml", tmp_path / "run"):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 4, errors
        assert "6 of 26 loops cannot be read" in errors


def test_kills_change_no_byte(settings):
    assert kill_finetune(str(settings), 3, 0, []) == 0
