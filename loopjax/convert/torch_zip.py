"""Reads PyTorch `.pt` / `.ckpt` files without PyTorch and without running anything inside them.

Such a file is a zip of one pickle, `data.pkl`, and one member of raw bytes per storage. Storages
are mapped from disk only when a tensor is asked for, so memory stays far below the file's size.
"""

import mmap
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from loopjax.convert.layouts import LazyTensor
from loopjax.convert.torch_pickle import Storage, TensorView, read_torch_pickle
from loopjax.errors import UserError
from loopjax.restricted_pickle.machine import RefusedError

MAX_PICKLE_BYTES = 16 << 20  # the largest published checkpoint's is about 1 MB
MAX_NAME = 1000
_PICKLE_START = b"\x80"  # torch.save before 1.6 wrote a row of bare pickles
_LOCAL_HEADER_BYTES = 30


class TorchZip:
    """An open checkpoint; `content` is the unpickled object with `TensorView`s in it."""

    def __init__(self, path: Path):
        """Opens and reads the structure, not the tensors.

        Raises:
            UserError: no torch zip, damaged, dishonest about sizes, or naming anything unknown.
        """
        self.path = path
        self._checked: set[str] = set()
        try:
            file = path.open("rb")
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror}")
        with file:
            if file.read(1) == _PICKLE_START:
                self._refuse(
                    "is in PyTorch's format of before 1.6 (or a bare pickle); save it anew with "
                    "PyTorch: torch.save(torch.load(OLD, weights_only=True), NEW)"
                )
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                self._refuse(f"is no complete PyTorch file ({error}); fetch it again")
            self._file_bytes = path.stat().st_size
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._members = {info.filename: info for info in self._zip.infolist()}
        for info in self._members.values():
            self._check_member(info)
        roots = [n.removesuffix("/data.pkl") for n in self._members if n.endswith("/data.pkl")]
        if len(roots) != 1:
            self._refuse("is no PyTorch checkpoint: it has no data.pkl (or several)")
        self._root = roots[0]
        if f"{self._root}/byteorder" in self._members and self._raw("byteorder", 16) != b"little":
            self._refuse("was written on a big-endian machine, which is not supported")
        try:
            self.content = read_torch_pickle(self._raw("data.pkl", MAX_PICKLE_BYTES))
        except RefusedError as error:
            self._refuse(f"is refused: {error}")

    def tensors(self) -> dict[str, LazyTensor]:
        """Every tensor by the names that lead to it: "state_dict.norm.weight".

        Raises:
            UserError: there are none.
        """
        found: dict[str, LazyTensor] = {}
        self._collect("", self.content, found)
        if not found:
            self._refuse("holds no tensors where a state dict is expected")
        return found

    def _collect(self, prefix: str, value: object, found: dict[str, LazyTensor]) -> None:
        if isinstance(value, TensorView):
            found[prefix.removesuffix(".")] = LazyTensor(value.shape, partial(self.read, value))
        elif isinstance(value, dict):
            if len(prefix) > MAX_NAME:
                self._refuse("has tensors with endless names")
            for name, inner in value.items():
                self._collect(f"{prefix}{name}.", inner, found)

    def read(self, tensor: TensorView) -> np.ndarray:
        """A tensor's values, straight from the file's pages."""
        return tensor.over(self._map(tensor.storage))

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.path} {why}")

    def _check_member(self, info: zipfile.ZipInfo) -> None:
        """Only plain, stored, honest members: no compression, so nothing can blow up."""
        name = info.filename
        if ".." in name.split("/") or name.startswith("/") or "\\" in name:
            self._refuse(f"has a member outside its own folder: {name!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            self._refuse(f"has a compressed member, {name!r}; PyTorch stores them plainly")
        if info.header_offset + _LOCAL_HEADER_BYTES + info.file_size > self._file_bytes:
            self._refuse(f"is shorter than its member {name!r} claims")

    def _raw(self, name: str, limit_bytes: int) -> bytes:
        info = self._members[f"{self._root}/{name}"]
        if info.file_size > limit_bytes:
            self._refuse(f"has an oversized {name} ({info.file_size} bytes)")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, OSError) as error:
            self._refuse(f"is damaged ({error}); fetch it again")

    def _map(self, storage: Storage) -> np.ndarray:
        info = self._members.get(f"{self._root}/data/{storage.name}")
        wanted = storage.n_elements * storage.dtype.itemsize
        if info is None or info.file_size != wanted:
            there = 0 if info is None else info.file_size
            self._refuse(
                f"lies about storage {storage.name}: {wanted} bytes claimed, {there} there"
            )
        name_bytes, extra_bytes = struct.unpack_from("<HH", self._bytes, info.header_offset + 26)
        start = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if start + wanted > self._file_bytes:
            self._refuse(f"ends inside storage {storage.name}")
        if storage.name not in self._checked:
            self._check_sum(info, memoryview(self._bytes)[start : start + wanted])
            self._checked.add(storage.name)
        return np.frombuffer(self._bytes, storage.dtype, storage.n_elements, start)

    def _check_sum(self, info: zipfile.ZipInfo, data: memoryview) -> None:
        """PyTorch can be told to write no checksums; then they are 0."""
        if info.CRC not in (0, zlib.crc32(data)):
            self._refuse(f"is damaged: {info.filename} does not match its checksum; fetch it again")
