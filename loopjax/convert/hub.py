"""Fetches a known encoder from the Hugging Face Hub, checks it and converts it into the cache."""

import tempfile
from pathlib import Path

from loopjax.convert.encoder import convert_encoder
from loopjax.convert.files import find_weights
from loopjax.encoders.load import cache_folder
from loopjax.encoders.published import KNOWN, KnownEncoder, known_encoder
from loopjax.errors import UserError
from loopjax.hub.client import TIMEOUT_S, client, one_message, require_encrypted


def pull(name: str, *, allow_http: bool = False) -> str:
    """Fetches a known encoder, checks its hash, converts it and keeps it in the cache.

    Needs the optional dependency huggingface_hub and a network; respects HF_HUB_OFFLINE and
    HF_ENDPOINT.

    Args:
        name: as `encoders()` lists it.
        allow_http: whether an HF_ENDPOINT without encryption may be asked.

    Returns:
        A summary of what lies where.

    Raises:
        UserError: unknown, no network, wrong hash, an endpoint anyone on the way could answer for;
            says what to download and where to put it.
    """
    known = known_encoder(name)
    if known is None:
        names = ", ".join(k.name for k in KNOWN)
        raise UserError(f"no known encoder {name!r}; known: {names}")
    folder = cache_folder(known)
    if (folder / "config.json").is_file():
        return f"{known.name} is already at {folder}"
    require_encrypted(allow_http)
    files = [_download(known, file, folder) for file in known.files]
    weights = files[0]
    sha256 = find_weights(weights).sha256()
    if known.sha256 not in (None, sha256):
        raise UserError(
            f"{weights} has sha256 {sha256} instead of {known.sha256}: a broken or exchanged "
            "download; it was not used. Delete it and pull again"
        )
    with tempfile.TemporaryDirectory() as scratch:
        # The Hub's cache holds links into a folder of blobs; conversion wants the plain names.
        for file in files:
            (Path(scratch) / file.name).symlink_to(file.resolve())
        done = convert_encoder(
            Path(scratch) / weights.name, folder, known=known, fusion=known.fusion
        )
    pinned = "as pinned" if known.is_pinned else "not pinned: what the Hub serves now was taken"
    return f"{done}\n  sha256: {sha256} ({pinned})\n  license: {known.license}"


def _download(known: KnownEncoder, file: str, folder: Path) -> Path:
    if known.repository is None:
        raise UserError(f"{known.name} is not on the Hugging Face Hub; {_by_hand(known, folder)}")
    hub = client(_by_hand(known, folder))
    try:
        with one_message():
            return Path(
                hub.hf_hub_download(
                    repo_id=known.repository,
                    filename=file,
                    revision=known.revision,
                    etag_timeout=TIMEOUT_S,
                )
            )
    except UserError as error:
        raise UserError(
            f"cannot fetch {file} of {known.repository} ({error}); {_by_hand(known, folder)}"
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
