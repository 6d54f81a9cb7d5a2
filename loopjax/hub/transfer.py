"""Sends encoders, models and stores to the Hub, and fetches them back, file by file checked.

`manifest.json` beside the files lists each with its sha256. A pull fetches what stands there and
nothing else; where one byte differs, nothing is kept.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loopjax import __version__
from loopjax.errors import UserError
from loopjax.hub.card import Kind, card, describe
from loopjax.hub.client import TIMEOUT_S, client, endpoint, one_message, require_encrypted
from loopjax.io import file_sha256, is_empty, write_folder, write_text
from loopjax.io.hub_names import HubName, is_hub_name, parse_hub_name
from loopjax.json_files import read_json

FORMAT = "loopjax-hub-1"
MANIFEST_NAME, CARD_NAME = "manifest.json", "README.md"


@dataclass(frozen=True)
class Pulled:
    """What was fetched.

    Attributes:
        name: with the commit, so that it means these files for good.
        kind: "encoder", "model" or "store".
        folder: where it lies.
        sha256: of its list of files, which holds the sha256 of each.
    """

    name: HubName
    kind: Kind
    folder: Path
    sha256: str


def push(
    folder: str | Path, name: str, *, public: bool = False, allow_http: bool = False
) -> HubName:
    """Uploads an encoder, a model or a store, with a card written from its record.

    A repository that does not exist is made, for its owner alone unless `public`. Files that an
    earlier push left there and that are no part of it any more are deleted. Stores and models hold
    the paths of the audio files.

    Args:
        folder: of `loopjax convert`, `fit`, `run` (its models and embeddings) or `embed`.
        name: `OWNER/NAME`, or as `hf://`.
        public: for everybody; of a repository that is there nothing changes.
        allow_http: whether an HF_ENDPOINT without encryption may be asked.

    Returns:
        The name of the commit.

    Raises:
        UserError: nothing that can be shared, no permission, no network.
    """
    require_encrypted(allow_http)
    folder = Path(folder)
    described = describe(folder)
    target = _target(name, described.kind)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _is_ours(path.relative_to(folder))
    }
    sizes = {file: path.stat().st_size for file, path in files.items()}
    notes = {f: {"sha256": file_sha256(p), "size_bytes": sizes[f]} for f, p in files.items()}
    manifest = {
        "format": FORMAT,
        "kind": described.kind,
        "version": __version__,
        "files": notes,
    }
    texts = {
        MANIFEST_NAME: json.dumps(manifest, indent=1) + "\n",
        CARD_NAME: card(described, target, sizes),
    }
    hub = client()
    contents: dict[str, Path | bytes] = {**files, **{f: t.encode() for f, t in texts.items()}}
    with one_message():
        api = hub.HfApi(endpoint=endpoint())
        what = {"repo_id": target.repository, "repo_type": target.repo_type}
        api.create_repo(**what, private=not public, exist_ok=True)
        left = set(api.list_repo_files(**what)) - set(contents) - {".gitattributes"}
        done = api.create_commit(
            **what,
            operations=[
                *(hub.CommitOperationDelete(file) for file in sorted(left)),
                *(hub.CommitOperationAdd(file, content) for file, content in contents.items()),
            ],
            commit_message=f"loopjax {__version__}: {described.kind}",
        )
    return target.at(done.oid)


def pull(name: str, out: str | Path | None = None, *, allow_http: bool = False) -> Pulled:
    """Downloads what was pushed and compares every file with its sha256.

    Args:
        name: `hf://OWNER/NAME` or `hf://datasets/OWNER/NAME`, with `@REVISION` or not.
        out: a folder for it; default: the user's cache, where the name is found from then on.
        allow_http: whether an HF_ENDPOINT without encryption may be asked.

    Raises:
        UserError: no such repository, nothing of loopjax in it, a file that is not what the list
            says, no network and not pulled before, or `out` holds something.
        WriteError: a file cannot be written.
    """
    require_encrypted(allow_http)
    wanted = parse_hub_name(name)
    if out is not None and not is_empty(Path(out)):
        raise UserError(f"{out} is not empty; choose another -o")
    if wanted.is_pinned and out is None and wanted.folder.is_dir():
        return _pulled(wanted, wanted.folder)  # nothing is asked of the network
    hub = client()
    with one_message():
        api = hub.HfApi(endpoint=endpoint())
        found = api.repo_info(
            wanted.repository,
            repo_type=wanted.repo_type,
            revision=wanted.revision,
            timeout=TIMEOUT_S,
        )
        commit = wanted.at(str(found.sha))
    folder = commit.folder if out is None else Path(out)
    if not is_empty(folder):
        _note(wanted, commit)
        return _pulled(commit, folder)

    def download(file: str) -> Path:
        with one_message():
            path = hub.hf_hub_download(
                commit.repository,
                file,
                repo_type=commit.repo_type,
                revision=commit.revision,
                endpoint=endpoint(),
                etag_timeout=TIMEOUT_S,
            )
        return Path(path).resolve()  # the Hub's cache holds links into a folder of blobs

    _, files = _manifest(download(MANIFEST_NAME), commit)

    def write(temporary: Path) -> None:
        for file, sha256 in files.items():
            _place(download(file), temporary / file, sha256, commit)
        shutil.copyfile(download(MANIFEST_NAME), temporary / MANIFEST_NAME)

    write_folder(folder, write)
    if out is None:
        _note(wanted, commit)
    return _pulled(commit, folder)


def _target(name: str, kind: Kind) -> HubName:
    is_dataset = kind == "store"
    prefix = "hf://datasets/" if is_dataset else "hf://"
    target = parse_hub_name(name if is_hub_name(name) else prefix + name)
    if target.is_dataset != is_dataset or target.revision != "main":
        raise UserError(f"{name}: a {kind} is pushed to {prefix}OWNER/NAME, without a revision")
    return target


def _is_ours(path: Path) -> bool:
    """Whether a push writes a file of this name itself, or nobody needs it: locks and the like."""
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.as_posix() in (MANIFEST_NAME, CARD_NAME)


def _manifest(file: Path, name: HubName) -> tuple[Kind, Mapping[str, str]]:
    """What a list of files says: the kind, and the sha256 of every file.

    Raises:
        UserError: it is none, or names files that lie elsewhere.
    """
    try:
        values = read_json(file)
        if values["format"] != FORMAT or values["kind"] not in ("encoder", "model", "store"):
            raise ValueError("of another version of loopjax")
        files = {path: note["sha256"] for path, note in values["files"].items()}
        for path, sha256 in files.items():
            parts = PurePosixPath(path).parts
            if not parts or path != "/".join(parts) or {".", ".."} & set(parts) or "\\" in path:
                raise ValueError(f"{path!r} is no file of this folder")
            bytes.fromhex(sha256)
        return values["kind"], files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{MANIFEST_NAME} of {name} cannot be used ({error})") from None


def _place(source: Path, target: Path, sha256: str, name: HubName) -> None:
    found = file_sha256(source)
    if found != sha256:
        raise UserError(
            f"{target.name} of {name} has sha256 {found} instead of {sha256}: a broken or "
            f"exchanged download; nothing was kept. Delete {source} and pull again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)  # stores are large, and nothing here is ever written into
    except OSError:
        shutil.copyfile(source, target)


def _note(wanted: HubName, commit: HubName) -> None:
    if not wanted.is_pinned:
        write_text(wanted.note, commit.revision + "\n")


def _pulled(commit: HubName, folder: Path) -> Pulled:
    kind, _ = _manifest(folder / MANIFEST_NAME, commit)
    return Pulled(commit, kind, folder, file_sha256(folder / MANIFEST_NAME))
