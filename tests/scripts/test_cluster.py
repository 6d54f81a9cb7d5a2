"""The Slurm script as written, with an `srun` that starts two processes on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from loopjax.store.read import read_embeddings

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster" / "embed.sbatch"
SRUN = """#!/usr/bin/env bash
# Two tasks on one node; Slurm's own options are passed over.
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
wait $first && wait $second
"""


def submit(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    srun = folder / "bin" / "srun"
    srun.parent.mkdir(exist_ok=True)
    srun.write_text(SRUN)
    srun.chmod(0o755)
    settings = {
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
        "LOOPJAX": f"{sys.executable} -m loopjax",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_two_tasks_of_a_job_embed_a_folder_into_one_store(tmp_path):
    loops = tmp_path / "loops"
    loops.mkdir()
    for i in range(6):
        tone = 0.3 * np.sin(2 * np.pi * (110 + 40 * i) * np.arange(16000) / 16000)
        soundfile.write(loops / f"{i}.wav", tone, 16000)
    done = submit(tmp_path, str(loops), str(tmp_path / "emb"), "--unit-files", "2")
    assert done.returncode == 0, done.stderr
    assert len(read_embeddings(tmp_path / "emb")) == 6
    assert len(list((tmp_path / "emb").glob("part-*.parquet"))) == 3, "a shard for every unit"


def test_a_job_without_a_target_says_how_it_is_used(tmp_path):
    done = submit(tmp_path, "loops")
    assert done.returncode == 2
    assert "usage: sbatch embed.sbatch SRC OUT" in done.stderr
