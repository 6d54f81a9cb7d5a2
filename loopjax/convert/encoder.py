"""An audio tower's checkpoint to an encoder folder."""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

from loopjax.convert.files import INDEX_SUFFIX, find_weights
from loopjax.convert.hub_config import HubConfig, read_hub_config
from loopjax.convert.layouts import Branch, find_branch
from loopjax.convert.mapping import Mapped, map_branch
from loopjax.convert.text import map_text
from loopjax.encoders.published import KnownEncoder, identify
from loopjax.encoders.storage import save_encoder
from loopjax.errors import UserError
from loopjax.io import check_can_write

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertedEncoder:
    """What a conversion did; `str` of it is a summary for people.

    Attributes:
        folder: where the encoder lies now.
        layout: laion, hf, retrocirce, msclap or bare.
        embedding_dim: width of the embedding.
        fusion: whether long clips are fused from four views.
        has_text: whether a text tower came with it.
        n_tensors: parameters written.
        sha256: of the weights as they were published.
        notes: remarks that are no errors.
        assumptions: what about the front end had to be assumed; also logged as warnings.
        ignored: names passed over (training state, text towers other than RoBERTa).
    """

    folder: Path
    layout: str
    embedding_dim: int
    fusion: bool
    has_text: bool
    n_tensors: int
    sha256: str
    notes: list[str]
    assumptions: list[str]
    ignored: list[str] = field(repr=False)

    def __str__(self) -> str:
        """One line, and one more per remark."""
        fusion = "with" if self.fusion else "without"
        return "\n  note: ".join([
            f"{self.folder}: HTS-AT {fusion} feature fusion, {self.embedding_dim}-wide embeddings, "
            f"{'and a text tower, ' if self.has_text else ''}from layout {self.layout}; "
            f"{self.n_tensors} parameters written, {len(self.ignored)} tensors of other parts "
            "ignored by name",
            *self.notes,
        ])  # fmt: skip


def convert_encoder(
    source: Path,
    out: Path,
    *,
    known: KnownEncoder | None = None,
    fusion: bool | None = None,
    quantize_int16: bool | None = None,
) -> ConvertedEncoder:
    """Converts a checkpoint file or Hugging Face folder to an encoder folder.

    Args:
        source: `.pt`, `.pth`, `.ckpt`, `.bin`, `.safetensors`, the `.index.json` of shards, or a
            folder holding one of them.
        out: folder to write; it appears only when it is complete.
        known: which published encoder it is; None = as its hash or its file's name says.
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
    check_can_write(out)
    weights = find_weights(source)
    tensors = weights.open()
    sha256, notes = weights.sha256(), []
    if known is None:
        known, notes = identify(weights.path.name, sha256)
    branch = find_branch(tensors)
    is_hub = branch.layout.name == "hf"  # then the files beside the weights have their say
    hub = read_hub_config(weights.path.parent) if is_hub else None
    mapped = _map(branch, hub, known, fusion)
    if known is not None and mapped.config.embedding_dim != known.dims:
        raise UserError(
            f"{weights.path} holds {mapped.config.embedding_dim}-wide embeddings, but "
            f"{known.name} has {known.dims}: it is another file; give it a name of its own"
        )
    front_end = mapped.front_end
    if quantize_int16 is not None:
        front_end = dataclasses.replace(front_end, quantize_int16=quantize_int16)
    text = map_text(branch, hub.text if hub else None, weights.path.parent)
    assumptions = mapped.assumptions + (text.assumptions if text else [])
    for assumption in assumptions:
        log.warning("%s: %s", weights.path, assumption)
    notes = notes + mapped.notes + (text.notes if text else [])
    about = {
        "layout": mapped.layout.name,
        "source": known.source if known else weights.path.name,
        "source_file": weights.path.name,
        "source_sha256": sha256,
        "source_bytes": weights.size_bytes(),
        "license": known.license if known else "unknown: ask whoever published the checkpoint",
        "notes": notes + assumptions,
        "assumptions": mapped.assumptions,
    }
    encoder_id = known.name if known else _own_name(source)
    save_encoder(
        out,
        mapped.config,
        front_end,
        mapped.weights,
        encoder_id=encoder_id,
        about=about,
        text=text.tower if text else None,
    )
    return ConvertedEncoder(
        folder=out,
        layout=mapped.layout.name,
        embedding_dim=mapped.config.embedding_dim,
        fusion=mapped.config.fusion,
        has_text=text is not None,
        n_tensors=len(mapped.weights) + (len(text.tower.weights) if text else 0),
        sha256=sha256,
        notes=notes,
        assumptions=assumptions,
        ignored=[key for key in mapped.ignored if text is None or key not in text.used],
    )


def _own_name(source: Path) -> str:
    """What an unknown encoder is called: its folder, or its file without the ending."""
    source = source.resolve()
    if source.is_dir():
        return source.name
    return source.parent.name if source.name.endswith(INDEX_SUFFIX) else source.stem


def _map(
    branch: Branch, hub: HubConfig | None, known: KnownEncoder | None, fusion: bool | None
) -> Mapped:
    """Maps the audio tower."""
    if fusion is None and hub is not None:
        fusion = hub.fusion
    if fusion is None and known is not None:
        fusion = known.fusion
    mapped = map_branch(branch, fusion)
    if hub is None:
        return mapped
    front_end, assumptions = hub.front_end(mapped.front_end, mapped.config.fusion)
    return dataclasses.replace(
        mapped, front_end=front_end, assumptions=mapped.assumptions + assumptions
    )
