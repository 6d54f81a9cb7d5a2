"""Finds the weights of a checkpoint and opens them, whatever kind of file they are in.

safetensors and PyTorch zips are both read without PyTorch, tensor by tensor, so that converting
needs little more memory than the audio tower takes.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from loopjax.convert.layouts import LazyTensor, Source
from loopjax.convert.torch_zip import TorchZip
from loopjax.encoders.published import HUB_WEIGHTS
from loopjax.errors import UserError

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def find_weights(source: Path) -> Path:
    """The weights file of a source: itself, or the one in a Hugging Face folder.

    Raises:
        UserError: there is none.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source} does not exist")
    found = [source / name for name in HUB_WEIGHTS if (source / name).is_file()]
    if not found:
        raise UserError(f"{source} holds neither {' nor '.join(HUB_WEIGHTS)}")
    return found[0]


def open_tensors(file: Path) -> Source:
    """The tensors of a checkpoint by name, read when asked for.

    Raises:
        UserError: unreadable or refused; says why.
    """
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in TORCH_SUFFIXES:
        return TorchZip(file).tensors()
    raise UserError(
        f"{file}: unknown kind of file; known: {', '.join(TORCH_SUFFIXES)}, .safetensors"
    )


def _open_safetensors(file: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(file, framework="numpy")
        names = list(handle.keys())
        shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is no complete safetensors file ({error}); fetch it again"
        ) from None
    if not names:
        raise UserError(f"{file} holds no tensors")
    read: Callable[[str], np.ndarray] = handle.get_tensor
    return {name: LazyTensor(shapes[name], partial(read, name)) for name in names}


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
