"""Finds the weights of a checkpoint and opens them, whatever kind and number of files they are in.

safetensors and PyTorch zips are both read without PyTorch, tensor by tensor, so that converting
needs little more memory than the audio tower takes.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from loopjax import json_files
from loopjax.convert.layouts import LazyTensor, Source
from loopjax.convert.torch_zip import TorchZip
from loopjax.errors import UserError

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
INDEX_SUFFIX = ".index.json"
# Names that every Hugging Face folder uses, the preferred one first.
_USUAL = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
_TRAINING_STATE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


@dataclass(frozen=True)
class Weights:
    """The weights of one checkpoint: a file, or shards with the index that lists them.

    Attributes:
        path: the file, or the index.
        shards: the files that hold tensors, in the index's order.
        shard_of: tensor name -> shard; empty where the one file says all.
    """

    path: Path
    shards: tuple[Path, ...]
    shard_of: dict[str, Path]

    def sha256(self) -> str:
        """SHA-256 of the file; of all shards one after the other."""
        digest = hashlib.sha256()
        for shard in self.shards:
            with shard.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(shard.stat().st_size for shard in self.shards)

    def open(self) -> Source:
        """The tensors by name, read when asked for.

        Raises:
            UserError: unreadable or refused, or the index does not fit the shards; says why.
        """
        if not self.shard_of:
            return _open_file(self.path)
        opened = {shard: _open_file(shard) for shard in self.shards}
        for name, shard in self.shard_of.items():
            if name not in opened[shard]:
                raise UserError(f"{self.path} looks for {name} in {shard.name}, which has none")
        return {name: opened[shard][name] for name, shard in self.shard_of.items()}


def find_weights(source: Path) -> Weights:
    """The weights of a source: a file, an index of shards, or those in a folder.

    Raises:
        UserError: there are none, or several that could be meant.
    """
    if source.is_dir():
        return _weights_of(_in_folder(source))
    if not source.is_file():
        raise UserError(f"{source} does not exist")
    return _weights_of(source)


def read_json(path: Path) -> dict[str, object]:
    """A JSON file that holds an object.

    Raises:
        UserError: unreadable, too large, or something else.
    """
    try:
        return json_files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is unreadable: {error}") from None


def _in_folder(folder: Path) -> Path:
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    endings = (*SUFFIXES, *(f"{suffix}{INDEX_SUFFIX}" for suffix in SUFFIXES))
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.name.endswith(endings) and not file.name.startswith(_TRAINING_STATE)
    ]
    indices = [file for file in found if file.name.endswith(INDEX_SUFFIX)]
    found = indices or [f for f in found if f.suffix == ".safetensors"] or found
    if not found:
        raise UserError(
            f"{folder} holds no weights: neither {' nor '.join(_USUAL[::2])} nor another file "
            f"ending in {', '.join(SUFFIXES)}"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:8])
        raise UserError(f"{folder} holds several files of weights ({names}): give the one to use")
    return found[0]


def _weights_of(path: Path) -> Weights:
    if not path.name.endswith(INDEX_SUFFIX):
        return Weights(path, (path,), {})
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path} lists no tensors (weight_map)")
    shard_of = {}
    for name, file in names.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(SUFFIXES):
            raise UserError(f"{path}: {name} lies in {file!r}, which is no file beside the index")
        shard_of[name] = path.with_name(file)
    shards = tuple(dict.fromkeys(shard_of.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{path} lists shards that are not there: {', '.join(missing)}")
    return Weights(path, shards, shard_of)


def _open_file(file: Path) -> Source:
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in TORCH_SUFFIXES:
        return TorchZip(file).tensors()
    raise UserError(f"{file}: unknown kind of file; known: {', '.join(SUFFIXES)}")


def _open_safetensors(file: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(file, framework="numpy")
        shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is no complete safetensors file ({error}); fetch it again"
        ) from None
    if not shapes:
        raise UserError(f"{file} holds no tensors")

    def read(name: str) -> np.ndarray:
        try:
            return handle.get_tensor(name)
        except (SafetensorError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{file}: {name} cannot be read ({error})") from None

    return {name: LazyTensor(shape, partial(read, name)) for name, shape in shapes.items()}
