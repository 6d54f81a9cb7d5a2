"""An audio tower's checkpoint to an encoder folder."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from loopjax.convert.files import file_sha256, find_weights, open_tensors
from loopjax.convert.hub_config import read_hub_config
from loopjax.convert.mapping import map_checkpoint
from loopjax.encoders.published import HUB_WEIGHTS, known_file
from loopjax.encoders.storage import save_encoder
from loopjax.errors import UserError


@dataclass(frozen=True)
class ConvertedEncoder:
    """What a conversion did; `str` of it is a summary for people.

    Attributes:
        folder: where the encoder lies now.
        layout: laion, hf, retrocirce or msclap.
        embedding_dim: width of the embedding.
        fusion: whether long clips are fused from four views.
        n_tensors: parameters written.
        notes: remarks that are no errors.
        ignored: names passed over (text tower, training state).
    """

    folder: Path
    layout: str
    embedding_dim: int
    fusion: bool
    n_tensors: int
    notes: list[str]
    ignored: list[str] = field(repr=False)

    def __str__(self) -> str:
        """One line, and one more per remark."""
        fusion = "with" if self.fusion else "without"
        return "\n  note: ".join([
            f"{self.folder}: HTS-AT {fusion} feature fusion, {self.embedding_dim}-wide embeddings, "
            f"from layout {self.layout}; {self.n_tensors} parameters written, "
            f"{len(self.ignored)} tensors of other parts ignored by name",
            *self.notes,
        ])  # fmt: skip


def convert_encoder(
    source: Path,
    out: Path,
    *,
    encoder_id: str | None = None,
    fusion: bool | None = None,
    quantize_int16: bool | None = None,
) -> ConvertedEncoder:
    """Converts a checkpoint file or Hugging Face folder to an encoder folder.

    Args:
        source: `.pt`, `.pth`, `.ckpt`, `.bin`, `.safetensors`, or a folder holding one.
        out: folder to write; it appears only when it is complete.
        encoder_id: the name that stores of embeddings record; default the known or the file's name.
        fusion: True or False to insist; None = as its Hugging Face config or its published name
            says, else what the file holds.
        quantize_int16: the int16 round trip; None = as the source's own code does it.

    Raises:
        UserError: unreadable, refused, or not exactly an HTS-AT; lists every key that is wrong.
        WriteError: `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists; give a folder that does not")
    file = find_weights(source)
    hub = read_hub_config(file.parent) if file.name in HUB_WEIGHTS else None
    tensors = open_tensors(file)
    sha256 = file_sha256(file)
    known = known_file(file.name, sha256)
    if fusion is None and hub is not None:
        fusion = hub.fusion
    if fusion is None and known is not None:
        fusion = known.fusion
    mapped = map_checkpoint(tensors, fusion)
    front_end, notes = mapped.front_end, mapped.notes
    if hub is not None and mapped.layout.name == "hf":
        front_end, hub_notes = hub.front_end(front_end, mapped.config.fusion)
        notes = notes + hub_notes
    if quantize_int16 is not None:
        front_end = dataclasses.replace(front_end, quantize_int16=quantize_int16)
    default_id = known.name if known else source.resolve().stem
    about = {
        "layout": mapped.layout.name,
        "source": known.source if known else file.name,
        "source_file": file.name,
        "source_sha256": sha256,
        "source_bytes": file.stat().st_size,
        "license": known.license if known else "unknown: ask whoever published the checkpoint",
        "notes": notes,
    }
    save_encoder(
        out,
        mapped.config,
        front_end,
        mapped.weights,
        encoder_id=encoder_id or default_id,
        about=about,
    )
    return ConvertedEncoder(
        folder=out,
        layout=mapped.layout.name,
        embedding_dim=mapped.config.embedding_dim,
        fusion=mapped.config.fusion,
        n_tensors=len(mapped.weights),
        notes=notes,
        ignored=mapped.ignored,
    )
