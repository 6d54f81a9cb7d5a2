"""Any published checkpoint to a folder this package uses; the one way into this wing."""

from pathlib import Path

import numpy.typing as npt

from loopjax.convert.encoder import ConvertedEncoder, convert_encoder
from loopjax.convert.files import TORCH_SUFFIXES, find_weights
from loopjax.convert.head import ConvertedHead, convert_head, is_head
from loopjax.errors import UserError


def convert(
    source: Path,
    out: Path,
    *,
    center: Path | None = None,
    threshold: float | None = None,
    training_rows: npt.ArrayLike | None = None,
    fusion: bool | None = None,
    quantize_int16: bool | None = None,
) -> ConvertedEncoder | ConvertedHead:
    """Converts a checkpoint: an audio tower to an encoder folder, a trained head to a model folder.

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
        WriteError: `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists; give a folder that does not")
    weights = find_weights(source)
    if weights.path.suffix in TORCH_SUFFIXES and is_head(weights.open()):
        return convert_head(
            weights.path, out, center=center, threshold=threshold, training_rows=training_rows
        )
    return convert_encoder(source, out, fusion=fusion, quantize_int16=quantize_int16)
