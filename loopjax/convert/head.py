"""A trained head of the reference implementation (music-anomalizer) to a Deep SVDD model folder.

Its Lightning checkpoints hold an `encoder` of `layers.N.linear` and `layers.N.bn`; autoencoders a
`decoder` beside it. The center vector is a pickled tensor next to the autoencoder's file, and once
more among the hyper-parameters of the one-class network's.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loopjax.convert.torch_pickle import TensorView, read_torch_pickle
from loopjax.convert.torch_zip import TorchZip
from loopjax.detectors.storage import save_detector
from loopjax.detectors.svdd.estimator import DeepSVDD
from loopjax.errors import UserError
from loopjax.io import check_can_write
from loopjax.restricted_pickle.machine import RefusedError

MAX_CENTER_BYTES = 1 << 20
_LEAVES = {
    "linear.weight": "linear/kernel",
    "linear.bias": "linear/bias",
    "bn.weight": "bn/scale",
    "bn.bias": "bn/bias",
    "bn.running_mean": "bn/mean",
    "bn.running_var": "bn/var",
}


@dataclass(frozen=True)
class ConvertedHead:
    """What converting a trained head did; `str` of it is a summary for people.

    Attributes:
        folder: the saved Deep SVDD model.
        widths: of its layers, from the embedding to the latent space.
        stage: "one-class" or "autoencoder", see `read_head`.
        notes: remarks that are no errors.
    """

    folder: Path
    widths: tuple[int, ...]
    stage: str
    notes: list[str]

    def __str__(self) -> str:
        """One line, and one more per remark."""
        widths = "-".join(map(str, self.widths))
        lines = [f"{self.folder}: Deep SVDD head {widths} from the reference's {self.stage} stage"]
        return "\n  note: ".join(lines + self.notes)


@dataclass(frozen=True)
class HeadArrays:
    """One trained head.

    Attributes:
        encoder: float32 by name, "layers/0/linear/kernel" [n_in, n_out] and so on.
        center: float32 [Z].
        residual: whether the file's name says it was pretrained with residual connections.
        stage: "one-class", or "autoencoder" when one-class training has not happened.
    """

    encoder: dict[str, np.ndarray]
    center: np.ndarray
    residual: bool
    stage: str


def is_head(names: Iterable[str]) -> bool:
    """Whether a checkpoint's tensor names are those of a head."""
    return any(_root(name) is not None for name in names)


def _root(name: str) -> str | None:
    """What stands before the names of a head's tensors, read off its first layer's."""
    first = "encoder.layers.0.linear.weight"
    at_start = name == first or name.endswith(f".{first}")
    return name.removesuffix(first) if at_start else None


def convert_head(
    source: Path,
    out: Path,
    *,
    center: Path | None = None,
    threshold: float | None = None,
    training_rows: npt.ArrayLike | None = None,
) -> ConvertedHead:
    """Converts a head's Lightning checkpoint to a Deep SVDD model.

    Args:
        source: the `.ckpt`.
        out: folder to write; it appears only when it is complete.
        center: its center vector, where it is neither in nor next to the file.
        threshold: above which a loop counts as anomalous.
        training_rows: [N, D] embeddings it was trained on, for the threshold (their 95 % quantile)
            and for percentiles.

    Raises:
        UserError: unreadable, refused, no such head, or without a center; names what is wrong.
        WriteError: `out` cannot be written.
    """
    check_can_write(out)
    head = read_head(source, center)
    notes = []
    if threshold is None and training_rows is None:
        threshold = math.inf
        notes.append("no threshold is known: scores rank loops, but none is called anomalous")
    if head.stage == "autoencoder":
        notes.append("this is the pretrained autoencoder; the reference scores with its DSVDD file")
    detector = DeepSVDD.from_arrays(
        head.encoder,
        head.center,
        training_rows=training_rows,
        threshold=threshold,
        network="residual" if head.residual else "standard",
    )
    section = {"name": source.stem, "space": None, "training_rows": None, "embeddings_path": None}
    save_detector(detector, out, {"model": section})
    kernels = [head.encoder[f"layers/{i}/linear/kernel"] for i in range(len(detector.hidden_dims))]
    widths = (kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels))
    return ConvertedHead(out, widths, head.stage, notes)


def read_head(source: Path, center: Path | None = None) -> HeadArrays:
    """Reads a head's Lightning checkpoint.

    Args:
        source: the `.ckpt`.
        center: `..._z_vector.pkl` or `.npy`; default the one in or next to the checkpoint.

    Raises:
        UserError: unreadable, refused, not such a head, or without a center; names what is wrong.
    """
    opened = TorchZip(source)
    every = opened.tensors()
    roots = [root for name in every if (root := _root(name)) is not None]
    if not roots:
        raise UserError(f"{source} is no head of the reference: encoder.layers.0.* is missing")
    root = "state_dict." if "state_dict." in roots else min(roots, key=len)
    tensors = {n.removeprefix(root): tensor for n, tensor in every.items() if n.startswith(root)}
    encoder: dict[str, np.ndarray] = {}
    problems = []
    for name, tensor in tensors.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if match is None or match[2] not in _LEAVES:
            if not re.fullmatch(r"decoder\..*|encoder\..*\.num_batches_tracked|center", name):
                problems.append(f"in the file but not used: {name}")
            continue
        array = np.asarray(tensor.read(), np.float32)
        n_axes = 2 if match[2] == "linear.weight" else 1
        if array.ndim != n_axes or 0 in array.shape:
            problems.append(f"wrong shape: {name} has {array.shape}")
        if not np.isfinite(array).all():
            problems.append(f"not a number: {name} holds NaN or infinity")
        encoder[f"layers/{match[1]}/{_LEAVES[match[2]]}"] = array.T if array.ndim == 2 else array
    kernels = [name for name in encoder if name.endswith("/linear/kernel")]
    for i in range(len(kernels)):
        if f"layers/{i}/linear/kernel" not in encoder:
            problems.append(f"missing in the file: encoder.layers.{i}.linear.weight")
    if problems:
        raise UserError(f"{source} is no head of the reference: {'; '.join(problems)}")
    return HeadArrays(
        encoder=encoder,
        center=_center(opened, source, center),
        residual="AEwRES" in source.name,
        stage="autoencoder" if any(n.startswith("decoder.") for n in tensors) else "one-class",
    )


def _center(opened: TorchZip, source: Path, given: Path | None) -> np.ndarray:
    beside = source.with_name(f"{source.name.removesuffix(source.suffix)}_z_vector.pkl")
    content = opened.content if isinstance(opened.content, dict) else {}
    inside = content.get("hyper_parameters", {})
    inside = inside.get("center") if isinstance(inside, dict) else None
    if given is None and isinstance(inside, TensorView):
        values = opened.read(inside)
    else:
        file = given or beside
        if not file.is_file():
            raise UserError(
                f"{source} has no center vector: give its ..._z_vector.pkl ({beside.name} is not "
                "there either)"
            )
        values = _read_center(file)
    values = np.array(values, np.float32)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UserError(f"the center of {source} is no vector of finite numbers")
    return values


def _read_center(file: Path) -> np.ndarray:
    if file.stat().st_size > MAX_CENTER_BYTES:
        raise UserError(f"{file} is too large for a center vector")
    if file.suffix == ".npy":
        try:
            return np.load(file, allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{file} is no NumPy array: {error}") from None
    try:
        view = read_torch_pickle(file.read_bytes())
    except RefusedError as error:
        raise UserError(f"{file} is refused: {error}") from None
    if not isinstance(view, TensorView) or view.storage.data is None:
        raise UserError(f"{file} holds no pickled tensor")
    return view.over(np.frombuffer(view.storage.data, view.storage.dtype))
