"""Named arrays on disk, on disks that are full or cannot be written."""

import asyncio
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from loopjax.arrays import read_arrays, write_arrays
from loopjax.errors import UserError

ARRAYS = {"a": np.arange(12.0).reshape(3, 4), "b": np.arange(5), "c": np.float32([1.5])}


def test_what_is_written_is_read(tmp_path):
    write_arrays(tmp_path / "arrays", ARRAYS)
    found = read_arrays(tmp_path / "arrays")
    assert {name: array.dtype for name, array in found.items()} == {
        name: array.dtype for name, array in ARRAYS.items()
    }
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_notebook_reads_doubles_as_doubles(tmp_path):
    """Orbax leaves the thread where an event loop runs, and with it settings of jax."""

    async def both() -> dict[str, np.ndarray]:
        write_arrays(tmp_path / "arrays", {"a": np.float64([1 / 3])})
        return read_arrays(tmp_path / "arrays")

    assert asyncio.run(both())["a"] == np.float64([1 / 3])


def test_other_shapes_and_damage_are_named(tmp_path):
    write_arrays(tmp_path / "arrays", ARRAYS)
    with pytest.raises(UserError, match="arrays: damaged"):
        read_arrays(tmp_path / "arrays", {"a": jax.ShapeDtypeStruct((4, 4), np.float64)})
    with pytest.raises(UserError, match="nowhere: damaged"):
        read_arrays(tmp_path / "nowhere")
    for file in (tmp_path / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="arrays: damaged"):
        read_arrays(tmp_path / "arrays")


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from loopjax.arrays import write_arrays
from loopjax.errors import WriteError
from loopjax.io import write_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
rng = np.random.default_rng(0)
arrays = {f"a{i}": rng.standard_normal(10_000) for i in range(8)}
try:
    write_folder(Path(sys.argv[1]), lambda folder: write_arrays(folder / "arrays", arrays))
except WriteError as error:
    print(error)
"""


@pytest.mark.faults
def test_a_full_disk_is_told_at_once_and_leaves_nothing(tmp_path):
    """The process must also end: a waiting thread of Orbax once kept it for five minutes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == f"cannot write {tmp_path / 'model'}: File too large"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
