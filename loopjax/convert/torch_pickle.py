"""What PyTorch puts into its pickles: tensors as views of storages, and the state of training."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from loopjax.restricted_pickle.arrays import NUMPY_FUNCTIONS
from loopjax.restricted_pickle.machine import Function, Name, RefusedError, UnknownNameError, fill
from loopjax.restricted_pickle.reader import load, load_next

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
_DTYPE_NAME = re.compile(r"b?float(16|32|64)|u?int(8|16|32|64)|bool")
_MAX_DIMENSIONS = 16
_STORAGE_BYTES_HEADER = 8  # each storage of the old format starts with its length


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


def read_torch_pickle(data: bytes) -> Any:
    """Reads one pickle; tensors come back as `TensorView`, optimizer state and the like as data.

    Raises:
        RefusedError: names what was asked for, or what is wrong. Nothing was run.
    """
    try:
        return load(data, _FUNCTIONS, is_inert=_is_inert, persistent=_storage_of)
    except UnknownNameError as error:
        raise RefusedError(
            f"it asks for {error.name}, which no checkpoint of weights needs; nothing was run. "
            "If you trust the file, save its state dict alone, best as safetensors"
        ) from None


def _is_inert(module: str, name: str) -> bool:
    if module in ("torch", "torch.storage"):
        return name in _DTYPES or _DTYPE_NAME.fullmatch(name) is not None
    return module.split(".")[0] in ("pytorch_lightning", "lightning")  # keys of callback states


def _storage_of(pid: object) -> Storage:
    match pid:
        # The old format, inside `_storage`, adds a view (None).
        case ("storage", Name() as kind, str(name), str(), int(count), *_):
            dtype = _DTYPES.get(kind.rpartition(".")[2])
            if dtype is not None:
                return Storage(name, np.dtype(dtype), count)
    raise RefusedError("it has an unknown kind of storage")


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> object:
    match storage, offset, shape, stride:
        case Storage(), int(), tuple(shape), tuple(stride) if len(shape) == len(stride):
            pass
        case _:
            raise RefusedError("it has a malformed tensor")
    sizes = (offset, *shape[:_MAX_DIMENSIONS], *stride[:_MAX_DIMENSIONS])
    if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in sizes):
        raise RefusedError("it has a malformed tensor")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and max(last + 1, math.prod(shape)) > storage.n_elements:
        raise RefusedError(f"it has a tensor of shape {shape} that leaves its storage")
    return TensorView(storage, offset, shape, stride)


def _storage(data: bytes) -> Storage:
    """A lone storage in the format of before 1.6, as a pickled tensor carries it."""
    end, values = 0, []
    for _ in range(5):  # magic number, version, machine, storage, names of storages
        value, end = load_next(
            data, end, _FUNCTIONS_INSIDE, is_inert=_is_inert, persistent=_storage_of
        )
        values.append(value)
    storage, raw = values[3], data[end + _STORAGE_BYTES_HEADER :]
    if not isinstance(storage, Storage) or len(raw) != storage.n_elements * storage.dtype.itemsize:
        raise RefusedError("it has a malformed storage")
    return storage._replace(data=raw)


def _ordered_dict(*pairs: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    fill(made, ((key, value) for key, value in (pairs[0] if pairs else ())))
    return made


def _as_it_is(value: object = ()) -> object:
    return value


_FUNCTIONS_INSIDE: Mapping[tuple[str, str], Function] = {
    **NUMPY_FUNCTIONS,
    **{(m, n): _as_it_is for m in ("builtins", "__builtin__") for n in ("set", "list", "dict")},
    **{
        ("pathlib", name): lambda *parts: "/".join(parts)
        for name in ("PosixPath", "WindowsPath", "PurePosixPath")
    },
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): lambda *_: {},
    ("collections", "Counter"): _as_it_is,
    ("argparse", "Namespace"): lambda: {},
    ("torch", "Size"): _as_it_is,
    ("torch", "device"): lambda *_: "device",
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
_FUNCTIONS = {**_FUNCTIONS_INSIDE, ("torch.storage", "_load_from_bytes"): _storage}
