"""What a reader takes at its peak, as a multiple of the file that it is given.

Each input is one that unfolds as far as its format allows: dense in small objects, or claiming far
more than it holds. `MULTIPLES` is the promise, with `SPARE_MIB` for what reading takes at all.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.audio_files import wav_bytes, write_corpus

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc"),
]

SPARE_MIB = 128  # libraries that a reader imports at its first file, and fixed buffers
MULTIPLES = {
    "pickle": 64,
    "torch zip": 64,
    "safetensors": 8,
    "npy": 8,
    "npz": 100,  # compressed; beyond 64 MiB a higher expansion is refused
    "parquet": 100,
    "parquet in blocks": 100,
    "csv": 32,
    "json": 64,
    "yaml": 1000,  # of at most 200 kB
    "list": 64,
    "labels": 64,
    "audio": 0,  # by the limits alone: ten minutes of mono at the file's rate
}
READ = """
import sys
from pathlib import Path
from loopjax.errors import LoopjaxError

kind, path = sys.argv[1], Path(sys.argv[2])
if kind in ("pickle", "safetensors", "npy", "npz", "parquet", "csv"):
    from loopjax.store.read import read_embeddings as read
elif kind == "parquet in blocks":
    from loopjax.store.schema import FAILURE_SCHEMA
    from loopjax.store.stream import StoredEmbeddings
    def read(path): return StoredEmbeddings([path], FAILURE_SCHEMA.empty_table()).load()
elif kind == "torch zip":
    from loopjax.convert.torch_zip import TorchZip
    def read(path): return TorchZip(path).tensors()
elif kind == "json":
    from loopjax.convert.files import read_json as read
elif kind == "yaml":
    from loopjax.config.tree import read_yaml as read
elif kind == "list":
    from loopjax.audio.sources.files import scan
    def read(path): return sum(1 for _ in scan([path]))
elif kind == "labels":
    from loopjax.experiment.labels import read_labels
    def read(path): return read_labels(path, log=lambda text: None)
elif kind == "audio":
    import os
    from loopjax.audio.decode import decode_file
    from loopjax.audio.loop import DecodeError
    from loopjax.errors import UserError
    def read(path):
        try:
            return decode_file(os.fsencode(path), -1, 0)
        except DecodeError as error:
            raise UserError(str(error)) from None

def peak_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

before = peak_kib()
try:
    read(path)
    outcome = "read"
except LoopjaxError as error:
    outcome = f"refused: {error}"
print(peak_kib() - before, outcome)
"""


def _pickle_dense() -> bytes:
    return b"\x80\x02]q\x00(" + b"]" * 1_000_000 + b"e."


def _pickle_memo() -> bytes:
    return b"]r" + struct.pack("<I", 2**32 - 2) + b"."


def _torch_zip() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle_dense())
    return raw.getvalue()


def _torch_zip_bomb() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 30))
    return raw.getvalue()


def _safetensors(header: object, size: int | None = None, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4096)


def _npz_bomb() -> bytes:
    raw = io.BytesIO()
    with (
        zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as f,
    ):
        f.write(_npy("(262144, 1024)")[:-4096])
        for _ in range(1024):
            f.write(bytes(1 << 20))
    return raw.getvalue()


def _parquet_runs() -> bytes:
    """A column of one value, which Parquet holds in a few bytes."""
    raw = io.BytesIO()
    values = pa.array(np.zeros(50_000_000, np.int8))
    table = pa.table({"embedding": values, "path": values})
    pq.write_table(table, raw, compression="zstd", row_group_size=50_000_000)
    return raw.getvalue()


N_TEXTS = 400
LONG = pa.DictionaryArray.from_arrays(
    pa.array(np.zeros(N_TEXTS, np.int32)), pa.array(["x" * 1_000_000])
)
ONE_EACH = pa.array(range(N_TEXTS + 1), pa.int32())


def _parquet_of(note: pa.Array) -> bytes:
    """A column whose rows all point at one long text, which Parquet holds once."""
    raw = io.BytesIO()
    table = pa.table({"note": note, "embedding": pa.array([[0.5, 1.5]] * len(note))})
    pq.write_table(table, raw, compression="zstd", store_schema=False)
    return raw.getvalue()


def _yaml_bomb() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines).encode()


def _flac_bomb() -> bytes:
    raw = io.BytesIO()
    with soundfile.SoundFile(raw, "w", 8000, 8, format="FLAC") as file:
        for _ in range(700):
            file.write(np.zeros((8000, 8), np.int16))
    return raw.getvalue()


def _encoded(kind: str) -> bytes:
    raw = io.BytesIO()
    soundfile.write(raw, np.zeros(44_100 * 30), 44_100, format=kind)
    return raw.getvalue()


INPUTS = {  # name -> (kind, ending, makes the file)
    "dense pickle": ("pickle", ".pkl", _pickle_dense),
    "pickle with a far reference": ("pickle", ".pkl", _pickle_memo),
    "pickle of a list": ("pickle", ".pkl", lambda: pickle.dumps([[0.5] * 100] * 3000, 2)),
    "dense torch pickle": ("torch zip", ".pt", _torch_zip),
    "torch zip bomb": ("torch zip", ".pt", _torch_zip_bomb),
    "endless safetensors header": (
        "safetensors",
        ".safetensors",
        lambda: _safetensors({}, size=2**63),
    ),
    "safetensors of many names": (
        "safetensors",
        ".safetensors",
        lambda: _safetensors(
            {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}
        ),
    ),
    "safetensors that claims more": (
        "safetensors",
        ".safetensors",
        lambda: _safetensors(
            {"a": {"dtype": "F32", "shape": [1 << 20, 1 << 12], "data_offsets": [0, 1 << 34]}}
        ),
    ),
    "npy that claims more": ("npy", ".npy", lambda: _npy("(1048576, 65536)")),
    "npy of endless shape": ("npy", ".npy", lambda: _npy("(9223372036854775807, 4)")),
    "npz bomb": ("npz", ".npz", _npz_bomb),
    "parquet of one value": ("parquet", ".parquet", _parquet_runs),
    "parquet of one long text": ("parquet", ".parquet", lambda: _parquet_of(LONG)),
    "parquet of one long text in lists": (
        "parquet",
        ".parquet",
        lambda: _parquet_of(pa.ListArray.from_arrays(ONE_EACH, LONG)),
    ),
    "parquet of one long text in structures": (
        "parquet",
        ".parquet",
        lambda: _parquet_of(pa.StructArray.from_arrays([LONG, LONG], names=["a", "b"])),
    ),
    "parquet of one long value of fixed width": (
        "parquet",
        ".parquet",
        lambda: _parquet_of(pa.array([bytes(1_000_000)] * N_TEXTS, pa.binary(1_000_000))),
    ),
    "parquet of one value, read in blocks": ("parquet in blocks", ".parquet", _parquet_runs),
    "parquet of one long text, read in blocks": (
        "parquet in blocks",
        ".parquet",
        lambda: _parquet_of(LONG),
    ),
    "csv of commas": ("csv", ".csv", lambda: b"a," * 20_000 + b"\n" + b"1," * 20_000),
    "csv of lines": ("csv", ".csv", lambda: b"e0,e1\n" + b"1,2\n" * 500_000),
    "json of lists": ("json", ".json", lambda: b'{"a":[' + b"[]," * 1_000_000 + b"0]}"),
    "deep json": ("json", ".json", lambda: b"[" * 1_000_000),
    "yaml bomb": ("yaml", ".yaml", _yaml_bomb),
    "dense yaml": ("yaml", ".yaml", lambda: b"a: [" + b"x," * 90_000 + b"x]"),
    "list of lines": ("list", ".txt", lambda: b"a\n" * 200_000),
    "one endless line": ("list", ".txt", lambda: b"a" * 20_000_000),
    "labels of lines": (
        "labels",
        ".csv",
        lambda: b"file,is_anomaly\n" + b"".join(b"%d,1\n" % i for i in range(300_000)),
    ),
    "labels in one cell": ("labels", ".csv", lambda: b'file,is_anomaly\n"' + b"a" * 20_000_000),
    "wav that claims more": (
        "audio",
        ".wav",
        lambda: wav_bytes(bytes(96_000), data_size=0x7FFFFFF0),
    ),
    "silent flac": ("audio", ".flac", _flac_bomb),
    "mp3": ("audio", ".mp3", lambda: _encoded("MP3")),
    "ogg": ("audio", ".ogg", lambda: _encoded("OGG")),
}


@pytest.mark.parametrize("name", INPUTS)
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path, name):
    kind, ending, make = INPUTS[name]
    path = tmp_path / f"a{ending}"
    path.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", READ, kind, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    used_kib, outcome = done.stdout.split(" ", 1)
    used_mib, file_mib = int(used_kib) / 1024, path.stat().st_size / (1 << 20)
    assert used_mib < SPARE_MIB + MULTIPLES[kind] * file_mib, (used_mib, file_mib, outcome)


LIMITED = """
import sys
from pathlib import Path
from loopjax.audio.decode import DecodeOptions
from loopjax.audio.process import DecoderProcess
from loopjax.audio.sources.files import scan
from loopjax.cli import main

loops, out = sys.argv[1:]
decoder = DecoderProcess(DecodeOptions())
decoder.decode(next(iter(scan([Path(loops)]))))
limits = Path(f"/proc/{decoder._process.pid}/limits").read_text()
decoder.close()
print(limits.split("Max address space")[1].split()[0], flush=True)
sys.exit(main(["embed", loops, "-o", out, "--encoder", "loopjax-nano", "--workers", "1", "--json"]))
"""


def test_embedding_works_under_a_limit_that_is_smaller_than_the_decoders_own(tmp_path):
    """`ulimit -v` of 3 GiB, while a decoder would give itself four: the smaller one counts."""
    write_corpus(tmp_path / "loops", 4, seconds=(0.1, 0.2))
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "loops"), str(tmp_path / "emb")]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -v 3145728; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    limit, summary = done.stdout.splitlines()
    assert int(limit) == 3 << 30
    assert json.loads(summary)["n_embedded"] == 4
