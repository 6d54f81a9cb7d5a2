"""Named encoders: which there are, where their weights lie, and how to load them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import platformdirs

from loopjax import bundled
from loopjax.encoders.baselines import REFERENCES
from loopjax.encoders.encoder import HtsatEncoder
from loopjax.encoders.published import KNOWN, KnownEncoder, known_encoder
from loopjax.encoders.space import Precision
from loopjax.encoders.storage import read_encoder, read_record, verify_encoder
from loopjax.encoders.text import TEXT_FOLDER, TextEncoder, read_text_encoder
from loopjax.errors import UserError
from loopjax.forks import refuse_after_fork
from loopjax.htsat.kernels import on_v5e
from loopjax.io.hub_names import is_hub_name, pulled

BUNDLED = "loopjax-nano"


@dataclass(frozen=True)
class EncoderRow:
    """One line of the list of known encoders.

    Attributes:
        name: what `load_encoder` takes.
        here: whether it can be loaded on this machine now.
        dims: width of the embedding; None = not known before it is here.
        fusion: whether long clips are fused from four views.
        size: of its files, as people write it.
        sha256: of the published file (of the weights, for the bundled encoder); None = not known.
        pinned: whether the hash decides what is fetched; else it is what the Hub serves that day.
        license: as its publishers state it.
        source: a page a person can open.
    """

    name: str
    here: bool
    dims: int | None
    fusion: bool
    size: str | None
    sha256: str | None
    pinned: bool
    license: str
    source: str


def default_precision() -> Precision:
    """Full float32 on a CPU; bfloat16 on accelerators, where it ranks loops alike and is faster."""
    return "fp32" if jax.default_backend() == "cpu" else "bf16"


def load_encoder(name: str | Path, precision: Precision | Literal["auto"] = "auto") -> HtsatEncoder:
    """Loads an encoder by name or from a folder written by `loopjax convert`.

    Args:
        name: a name from `encoders()`, a folder, or `hf://OWNER/NAME`; a folder that is called
            like a known name is given as a `Path` or as `./NAME`.
        precision: of the network's arithmetic; "auto" is `default_precision`. The front end works
            in full float32 in any case.

    Raises:
        UserError: no such encoder, not fetched yet, its folder is damaged, or "bf16-fused" without
            a GPU or a TPU v5e; says what to do.
    """
    refuse_after_fork()
    if precision == "auto":
        precision = default_precision()
    if precision == "bf16-fused" and not (jax.default_backend() == "gpu" or on_v5e()):
        raise UserError(
            "precision bf16-fused needs a GPU or a TPU v5e, and JAX found "
            f"{jax.devices()[0].device_kind}: use bf16, whose embeddings differ in rounding alone"
        )
    if str(name) in REFERENCES:
        return REFERENCES[str(name)](precision)
    folder = _locate(name)
    if is_hub_name(name):
        return read_encoder(folder, precision, str(pulled(name)))  # the commit, not the branch
    by_name = folder != Path(name)  # else it is a folder, which another process may see elsewhere
    encoder = read_encoder(folder, precision, str(name) if by_name else None)
    known = known_encoder(name) if isinstance(name, str) else None
    if known is not None and encoder.embedding_dim != known.dims:
        raise UserError(
            f"{cache_folder(known)} holds {encoder.embedding_dim}-wide embeddings, but {name} has "
            f"{known.dims}: it is another encoder; remove it and pull {name} again"
        )
    return encoder


def load_text_encoder(name: str | Path) -> TextEncoder:
    """Loads the text tower of an encoder, by the names that `load_encoder` takes.

    Raises:
        UserError: no such encoder, one that knows no texts, or a damaged folder; says what to do.
    """
    refuse_after_fork()
    if not has_text_tower(name):
        raise UserError(
            f"encoder {name} knows sounds only, no texts: embed with a CLAP encoder instead, such "
            "as clap-htsat-fused (loopjax encoders pull clap-htsat-fused)"
        )
    return read_text_encoder(_locate(name))


def has_text_tower(name: str | Path) -> bool:
    """Whether an encoder knows texts, without loading what knows them.

    Raises:
        UserError: no such encoder.
    """
    return str(name) not in REFERENCES and (_locate(name) / TEXT_FOLDER).is_dir()


def encoders() -> list[EncoderRow]:
    """One row per known encoder, the bundled one first."""
    known = [
        EncoderRow(
            name=k.name,
            here=(cache_folder(k) / "config.json").is_file(),
            dims=k.dims,
            fusion=k.fusion,
            size=k.size,
            sha256=k.sha256,
            pinned=k.is_pinned,
            license=k.license,
            source=k.source,
        )
        for k in KNOWN
    ]
    return [_bundled_row(), *known]


def _bundled_row() -> EncoderRow:
    folder = bundled.folder("weights") / BUNDLED
    record = read_record(folder)
    size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shape = record["architecture"]
    return EncoderRow(
        name=BUNDLED,
        here=True,
        dims=shape["width"] * 2 ** (len(shape["depths"]) - 1),
        fusion=shape["fusion"],
        size=f"{size_bytes / 1e6:.1f} MB",
        sha256=record["weights_sha256"],
        pinned=True,
        license="MIT",
        source="bundled",
    )


def record_of(name: str | Path) -> dict[str, Any]:
    """The `config.json` of an encoder, which says where it comes from; empty if it has no folder.

    Raises:
        UserError: no such encoder.
    """
    return {} if str(name) in REFERENCES else read_record(_locate(name))


def verify(name: str | Path) -> str:
    """Recomputes the probe embedding stored with an encoder; returns a line that says how close.

    Raises:
        UserError: no such encoder, damaged, or without a probe.
        ModelCheckError: it gives other embeddings than when it was written.
    """
    return verify_encoder(_locate(name))


def cache_folder(known: KnownEncoder) -> Path:
    """Where a fetched encoder is kept: the user's cache folder, below `loopjax/encoders`."""
    cache = platformdirs.user_cache_path("loopjax", appauthor=False)
    return cache / "encoders" / known.name.replace("/", "--")


def _locate(name: str | Path) -> Path:
    """The folder of an encoder; a known name never means a folder that happens to be called so."""
    if is_hub_name(name):
        return pulled(name).folder
    here = Path(name)
    known = known_encoder(name) if isinstance(name, str) else None
    if name == BUNDLED:
        return bundled.folder("weights") / BUNDLED
    if known is not None:
        folder = cache_folder(known)
        if (folder / "config.json").is_file():
            return folder
        hint = f" (for the folder of that name here, say ./{here})" if here.is_dir() else ""
        raise UserError(f"{name} is not on this machine yet: loopjax encoders pull {name}{hint}")
    if (here / "config.json").is_file():
        return here
    raise UserError(
        f"no encoder {str(name)!r}: give {BUNDLED!r} (bundled), a name from `loopjax encoders`, or "
        "a folder written by `loopjax convert`"
    )
