"""An unpickler for PyTorch's files that knows a dozen harmless names and refuses every other.

Nothing it returns can be called by the pickle except the few functions listed in `_functions`, and
nothing it builds has an attribute that the pickle could set.
"""

import io
import math
import pickle  # noqa: TID251  (behind find_class below; the file's own code is never reached)
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_STORAGE_BYTES_HEADER = 8  # each storage of the old format starts with its length


class RefusedError(ValueError):
    """The pickle is damaged, dishonest, or asks for something that is not known to be harmless."""


class Storage(NamedTuple):
    """Where a tensor's elements lie.

    Attributes:
        name: of the storage within the file.
        dtype: of its elements.
        n_elements: how many it claims.
        data: the elements' bytes where the pickle itself carries them.
    """

    name: str
    dtype: np.dtype
    n_elements: int
    data: bytes | None = None


class TensorView(NamedTuple):
    """A tensor: a view of a storage, checked to stay inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def over(self, elements: np.ndarray) -> np.ndarray:
        """The view of the storage's elements, without copying."""
        steps = [step * elements.itemsize for step in self.stride]
        view = np.lib.stride_tricks.as_strided
        return view(elements[self.offset :], self.shape, steps, writeable=False)


class _Dict(dict):
    """A plain dict where the file says OrderedDict; extra attributes (`_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignored."""


class _Name(str):
    """A class the file mentions but that is of no use here; a string cannot be called."""

    __slots__ = ()


class _DType(str):
    """A NumPy dtype's spelling; its pickled state says nothing that matters here."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignored."""


class _Call(NamedTuple):
    """A function the pickle may call."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """Calls it."""
        return self.function(*arguments)


def load(data: bytes) -> Any:
    """Reads one pickle; tensors come back as `TensorView`, optimizer state and the like as is.

    Raises:
        RefusedError: names what was asked for, or what is wrong. Nothing was run.
    """
    return _load_next(io.BytesIO(data))


def _load_next(stream: io.BytesIO) -> Any:
    start = stream.tell()
    try:
        # A memo index far past the end makes the C unpickler allocate for all before it.
        for opcode, argument, _ in pickletools.genops(stream):
            if "PUT" in opcode.name and int(argument or 0) > stream.getbuffer().nbytes:
                raise RefusedError("its pickle is malformed")
        stream.seek(start)
        return _Unpickler(stream).load()
    except RefusedError:
        raise
    except (
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        EOFError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise RefusedError(f"its pickle is unreadable ({error})") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _functions():
            return _Call(_functions()[module, name])
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _Name(name)
        if module.split(".")[0] in ("pytorch_lightning", "lightning"):
            return _Name(f"{module}.{name}")  # old Lightning keys callback states by class
        raise RefusedError(
            f"it asks for {module}.{name}, which no checkpoint of weights needs; nothing was run. "
            "If you trust the file, save its state dict alone, best as safetensors"
        )

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            # The old format, inside `_storage`, adds a view (None).
            case ("storage", _Name() as kind, str(name), str(), int(count), *_) if kind in _DTYPES:
                return Storage(name, np.dtype(_DTYPES[kind]), count)
        raise RefusedError("it has an unknown kind of storage")


def _functions() -> dict[tuple[str, str], Callable[..., Any]]:
    containers = {"set": set, "list": list, "dict": dict}
    paths = ("PosixPath", "WindowsPath", "PurePosixPath")
    return {
        **{(m, n): kind for m in ("builtins", "__builtin__") for n, kind in containers.items()},
        **{("pathlib", name): lambda *parts: "/".join(parts) for name in paths},
        ("collections", "OrderedDict"): _Dict,
        ("collections", "defaultdict"): lambda *_: _Dict(),
        ("argparse", "Namespace"): _Dict,
        ("torch", "Size"): tuple,
        ("torch", "device"): lambda *name: str(name),
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): lambda spelling, *_: _DType(spelling),
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
    }


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorView:
    sizes = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in sizes):
        raise RefusedError("it has a malformed tensor")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and max(last + 1, math.prod(shape)) > storage.n_elements:
        raise RefusedError(f"it has a tensor of shape {tuple(shape)} that leaves its storage")
    return TensorView(storage, offset, tuple(shape), tuple(stride))


def _storage(data: bytes) -> Storage:
    """A lone storage in the format of before 1.6, as a pickled tensor carries it."""
    stream = io.BytesIO(data)
    _magic, _version, _machine, storage, _names = [_load_next(stream) for _ in range(5)]
    raw = stream.read()[_STORAGE_BYTES_HEADER:]
    if not isinstance(storage, Storage) or len(raw) != storage.n_elements * storage.dtype.itemsize:
        raise RefusedError("it has a malformed storage")
    return storage._replace(data=raw)


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 spells bytes as `_codecs.encode(text, 'latin1')`."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding}")
    return text.encode("latin1")


def _scalar(spelling: str, data: bytes) -> Any:
    """A NumPy scalar, such as a learning rate in an optimizer's state."""
    dtype = np.dtype(str(spelling))
    if dtype.kind not in "fiub":
        raise ValueError(f"dtype {spelling}")
    return np.frombuffer(data, dtype, 1)[0].item()
