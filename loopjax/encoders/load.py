"""Named encoders: which there are, where their weights live, how to fetch and check them."""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from loopjax import bundled
from loopjax.convert.encoder import Converted, convert_encoder, file_sha256
from loopjax.encoders.baselines import REFERENCES
from loopjax.encoders.encoder import Encoder, Precision
from loopjax.encoders.published import KNOWN, KnownEncoder, known_encoder
from loopjax.encoders.storage import read_encoder, read_record, save_encoder, verify_encoder
from loopjax.errors import UserError

__all__ = ["encoders", "load_encoder", "pull", "read_encoder", "save_encoder", "verify"]

BUNDLED = "loopjax-nano"
HUB_TIMEOUT_S = 10


def load_encoder(name: str | Path, precision: Precision = "fp32") -> Encoder:
    """Loads an encoder by name or from a folder written by `loopjax convert`.

    Raises:
        UserError: no such encoder, not fetched yet, its folder is damaged, or "bf16-fused" without
            a GPU; says what to do.
    """
    if precision == "bf16-fused" and jax.default_backend() != "gpu":
        raise UserError(
            f"precision bf16-fused needs a GPU, and JAX found {jax.default_backend()} only: "
            "use bf16, whose embeddings differ in rounding alone"
        )
    if str(name) in REFERENCES:
        return REFERENCES[str(name)](precision)
    return read_encoder(_locate(name), precision)


def encoders() -> list[dict[str, Any]]:
    """One row per known encoder: name, here, dims, fusion, license, size, sha256, source."""
    rows = [
        {
            "name": k.name,
            "here": "yes" if (cache_folder(k) / "config.json").is_file() else "",
            "dims": k.dims,
            "fusion": "yes" if k.fusion else "",
            "size": k.size,
            "sha256": k.sha256,
            "license": k.license,
            "source": k.source,
        }
        for k in KNOWN
    ]
    bundled = {"name": BUNDLED, "here": "", "dims": None, "fusion": "yes", "size": None}
    bundled |= {"sha256": None, "license": "MIT", "source": "bundled"}
    folder = _find(BUNDLED)
    if folder is not None:
        record = read_record(folder)
        size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shape = record["architecture"]
        bundled |= {
            "here": "yes",
            "dims": shape["width"] * 2 ** (len(shape["depths"]) - 1),
            "fusion": "yes" if shape["fusion"] else "",
            "size": f"{size_bytes / 1e6:.1f} MB",
            "sha256": record["weights_sha256"],
        }
    return [bundled, *rows]


def pull(name: str) -> str:
    """Fetches a known encoder, checks its hash, converts it and keeps it in the cache.

    Needs the optional dependency huggingface_hub and a network; respects HF_HUB_OFFLINE.

    Returns:
        A summary of what lies where.

    Raises:
        UserError: unknown, no network, wrong hash; says what to download and where to put it.
    """
    known = known_encoder(name)
    if known is None:
        names = ", ".join(k.name for k in KNOWN)
        raise UserError(f"no known encoder {name!r}; known: {names}")
    folder = cache_folder(known)
    if (folder / "config.json").is_file():
        return f"{known.name} is already at {folder}"
    files = [_download(known, file, folder) for file in known.files]
    weights = files[0]
    sha256 = file_sha256(weights)
    if known.sha256 not in (None, sha256):
        raise UserError(
            f"{weights} has sha256 {sha256} instead of {known.sha256}: a broken or exchanged "
            "download; it was not used. Delete it and pull again"
        )
    with tempfile.TemporaryDirectory() as scratch:
        # The Hub's cache holds links into a folder of blobs; conversion wants the plain names.
        for file in files:
            (Path(scratch) / file.name).symlink_to(file.resolve())
        done: Converted = convert_encoder(
            Path(scratch) / weights.name, folder, encoder_id=known.name, fusion=known.fusion
        )
    return f"{done}\n  license: {known.license}"


def verify(name: str | Path) -> str:
    """Recomputes the probe embedding stored with an encoder; returns a line that says how close.

    Raises:
        UserError: no such encoder, damaged, or without a probe.
        ModelCheckError: it gives other embeddings than when it was written.
    """
    return verify_encoder(_locate(name))


def cache_folder(known: KnownEncoder) -> Path:
    """Where a fetched encoder is kept: $XDG_CACHE_HOME/loopjax/encoders/NAME."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "loopjax" / "encoders" / known.name.replace("/", "--")


def _download(known: KnownEncoder, file: str, folder: Path) -> Path:
    if known.repository is None:
        raise UserError(f"{known.name} is not on the Hugging Face Hub; {_by_hand(known, folder)}")
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise UserError(
            "fetching needs huggingface_hub: pip install 'loopjax[hub]'; or without it, "
            + _by_hand(known, folder)
        ) from None
    network = getattr(errors, "HTTPError", OSError)  # httpx's; requests' is an OSError
    try:
        return Path(
            hf_hub_download(
                repo_id=known.repository,
                filename=file,
                revision=known.revision,
                etag_timeout=HUB_TIMEOUT_S,
            )
        )
    except (OSError, ValueError, network) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"cannot fetch {file} of {known.repository} ({reason}); {_by_hand(known, folder)}"
        ) from error


def _by_hand(known: KnownEncoder, folder: Path) -> str:
    """What to download on another machine and where to put it."""
    if known.repository is None:
        what = f"{known.files[0]} from {known.origin}"
    else:
        base = f"https://huggingface.co/{known.repository}/resolve/{known.revision or 'main'}"
        what = ", ".join(f"{base}/{file}" for file in known.files)
    together = " into one folder" if len(known.files) > 1 else ""
    return (
        f"download {what}{together}, then: loopjax convert {' '.join(known.files[:1])} -o {folder}"
    )


def _find(name: str | Path) -> Path | None:
    known = known_encoder(str(name))
    folders = [Path(name), bundled.folder("weights") / str(name)]
    if known is not None:
        folders.append(cache_folder(known))
    return next((f for f in folders if (f / "config.json").is_file()), None)


def _locate(name: str | Path) -> Path:
    folder = _find(name)
    if folder is not None:
        return folder
    if known_encoder(str(name)) is not None:
        raise UserError(f"{name} is not on this machine yet: loopjax encoders pull {name}")
    raise UserError(
        f"no encoder {str(name)!r}: give {BUNDLED!r} (bundled), a name from `loopjax encoders`, or "
        "a folder written by `loopjax convert`"
    )
