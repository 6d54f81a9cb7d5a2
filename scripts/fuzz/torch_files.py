"""Writes PyTorch zip files without PyTorch, well-formed and hostile ones."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage"}


class Global(NamedTuple):
    """A reference to an importable name, which nothing here imports."""

    module: str
    name: str


class Call(NamedTuple):
    """What the unpickler shall call."""

    function: Global
    arguments: tuple


class Storage(NamedTuple):
    """A storage by its number."""

    kind: str
    number: int
    n_elements: int


class TorchPickler(pickle._Pickler):
    """Pickles arrays as PyTorch pickles tensors, `Global` and `Call` as what they stand for."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, protocol=2)
        self.storages: list[bytes] = []

    def persistent_id(self, obj: Any) -> Any:
        """A storage's number, kind and size."""
        if isinstance(obj, Storage):
            kind = Global("torch", obj.kind)
            return ("storage", kind, str(obj.number), "cpu", obj.n_elements)
        return None

    def write_global(self, obj: Global) -> None:
        """A name that would be imported."""
        self.write(f"c{obj.module}\n{obj.name}\n".encode())

    def write_call(self, obj: Call) -> None:
        """A function and its arguments."""
        self.write_global(obj.function)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    def write_array(self, obj: np.ndarray) -> None:
        """A tensor over a storage of its own."""
        kind = STORAGES[obj.dtype.str[1:]]
        storage = Storage(kind, len(self.storages), obj.size)
        self.storages.append(np.ascontiguousarray(obj).tobytes())
        strides = tuple(int(np.prod(obj.shape[i + 1 :])) for i in range(obj.ndim))
        self.write_call(tensor(storage, 0, obj.shape, strides))

    dispatch[Global] = write_global
    dispatch[Call] = write_call
    dispatch[np.ndarray] = write_array


def tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> Call:
    """A tensor as PyTorch spells it."""
    hooks = Call(Global("collections", "OrderedDict"), ())
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, shape, strides, False, hooks))


def pickle_torch(content: Any) -> tuple[bytes, list[bytes]]:
    """The pickle of `content`, and the bytes of each storage that it mentions."""
    stream = io.BytesIO()
    writer = TorchPickler(stream)
    writer.dump(content)
    return stream.getvalue(), writer.storages


def write_torch(
    path: Path,
    content: Any,
    *,
    compression: int = zipfile.ZIP_STORED,
    members: dict[str, bytes] | None = None,
) -> Path:
    """Writes `content`, with NumPy arrays as tensors; `members` replaces or adds zip members."""
    pickled, storages = pickle_torch(content)
    files = {"archive/data.pkl": pickled, "archive/byteorder": b"little"}
    files |= {f"archive/data/{i}": data for i, data in enumerate(storages)}
    files |= {"archive/version": b"3\n"} | (members or {})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
