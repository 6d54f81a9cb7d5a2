"""Joins checkpoint reading and detectors: any published file to a folder this package uses."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopjax.convert.encoder import (
    TORCH_SUFFIXES,
    Converted,
    convert_encoder,
    find_weights,
    open_tensors,
)
from loopjax.convert.heads import is_head, read_head
from loopjax.detectors import DeepSVDD
from loopjax.errors import UserError


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


def convert(
    source: Path,
    out: Path,
    *,
    center: Path | None = None,
    threshold: float | None = None,
    training_rows: Any | None = None,
    fusion: bool | None = None,
    quantize_int16: bool | None = None,
) -> Converted | ConvertedHead:
    """Converts a checkpoint: an audio tower to an encoder folder, a trained head to a detector.

    Args:
        source: file or Hugging Face folder.
        out: folder to write; it appears only when it is complete.
        center: head only: its center vector, where it is neither in nor next to the file.
        threshold: head only: above which a loop counts as anomalous.
        training_rows: head only: [N, D] embeddings it was trained on, for the threshold (their
            95 % quantile) and for percentiles.
        fusion: encoder only: insist on feature fusion, or on none.
        quantize_int16: encoder only: the int16 round trip; None = as the source does it.

    Raises:
        UserError: unreadable, refused or incomplete; lists every key that is wrong.
    """
    source, out = Path(source), Path(out)
    file = find_weights(source)
    if file.suffix in TORCH_SUFFIXES and is_head(set(open_tensors(file))):
        return _convert_head(file, out, center, threshold, training_rows)
    return convert_encoder(source, out, fusion=fusion, quantize_int16=quantize_int16)


def _convert_head(
    file: Path, out: Path, center: Path | None, threshold: float | None, training_rows: Any | None
) -> ConvertedHead:
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists; give a folder that does not")
    head = read_head(file, center)
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
    detector.save(out)
    kernels = [head.encoder[f"layers/{i}/linear/kernel"] for i in range(len(detector.hidden_dims))]
    widths = (kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels))
    return ConvertedHead(out, widths, head.stage, notes)
