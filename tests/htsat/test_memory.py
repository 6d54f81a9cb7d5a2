"""Converting a checkpoint of published size needs far less memory than the file takes on disk."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.fuzz.torch_files import Storage, tensor, write_torch
from tests.htsat.cases import checkpoint

TEXT_FLOATS, OPTIMIZER_FLOATS = 125_000_000, 310_000_000  # RoBERTa; two moments of everything
CHUNK = bytes(4_000_000)

CONVERT = """
import resource, sys
from pathlib import Path
from loopjax.convert.checkpoint import convert
print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.timeout(1500)
def test_a_two_gigabyte_checkpoint(tmp_path):
    def filler(number: int, floats: int):
        return tensor(Storage("FloatStorage", number, floats), 0, (floats,), (1,))

    state = checkpoint("laion_tiny_fused") | {"text_branch.all": filler(9001, TEXT_FLOATS)}
    content = {"epoch": 1, "state_dict": state, "optimizer": {0: filler(9002, OPTIMIZER_FLOATS)}}
    file = write_torch(tmp_path / "big.pt", content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for number, floats in ((9001, TEXT_FLOATS), (9002, OPTIMIZER_FLOATS)):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as member:
                for _ in range(4 * floats // len(CHUNK)):
                    member.write(CHUNK)
    file_bytes = file.stat().st_size
    assert file_bytes > 1.8e9
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, file, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    summary, peak_bytes = done.stdout.rsplit("\n", 2)[:2]
    assert "768-wide" in summary
    assert (tmp_path / "out" / "config.json").is_file()
    assert int(peak_bytes) < file_bytes, f"peak {int(peak_bytes) / 1e9:.2f} GB"
