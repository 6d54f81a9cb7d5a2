"""What this machine offers: devices, codecs, extras, cache and limits, for `loopjax doctor`."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loopjax import __version__

# Extra -> the module whose presence shows it, and what it is for.
EXTRAS = {
    "report": ("matplotlib", "reports and figures"),
    "codecs": ("av", "M4A, WMA, WavPack, Ogg FLAC and other formats"),
    "hub": ("huggingface_hub", "fetching published encoders"),
    "text": ("tokenizers", "search by text, with an encoder that has a text tower"),
    "index": ("usearch", "quick search in stores of very many loops"),
    "eval": ("pedalboard", "robustness curves"),
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pyarrow", "soundfile")
MIN_OPEN_FILES = 256
MIN_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        topic: what was looked at.
        text: what was found.
        advice: what to do about it; empty where nothing is wrong.
    """

    topic: str
    text: str
    advice: str = ""


def diagnose() -> Iterator[Finding]:
    """Looks at one thing after the other; nothing is changed and nothing is sent."""
    yield Finding("loopjax", f"{__version__}, Python {platform.python_version()}, {sys.executable}")
    yield Finding("system", f"{platform.platform()}, {os.cpu_count()} cores")
    yield Finding("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    yield _devices()
    yield _codecs()
    for extra in EXTRAS:
        yield _extra(extra)
    yield _encoder()
    yield _cache()
    yield _open_files()
    yield _disk()


def _devices() -> Finding:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return Finding("devices", str(error), "jax finds no device; see jax's installation page")
    kinds = sorted({device.device_kind for device in devices})
    text = f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()})"
    unused = shutil.which("nvidia-smi") and jax.default_backend() == "cpu"
    advice = "a GPU is here and not used: pip install 'loopjax[cuda12]'" if unused else ""
    return Finding("devices", text, advice)


def _codecs() -> Finding:
    import soundfile

    formats = ", ".join(
        sorted({"WAV", "FLAC", "OGG", "MP3", "AIFF"} & {*soundfile.available_formats()})
    )
    missing = "MP3" not in soundfile.available_formats()
    advice = "this libsndfile reads no MP3: pip install --upgrade soundfile" if missing else ""
    return Finding("codecs", f"{soundfile.__libsndfile_version__}: {formats}", advice)


def _extra(name: str) -> Finding:
    module, purpose = EXTRAS[name]
    if importlib.util.find_spec(module) is None:
        return Finding(f"[{name}]", f"not installed; for {purpose}: pip install 'loopjax[{name}]'")
    return Finding(f"[{name}]", f"installed; for {purpose}")


def _encoder() -> Finding:
    from loopjax.encoders.load import verify
    from loopjax.errors import LoopjaxError

    try:
        return Finding("encoder", str(verify("loopjax-nano")))
    except LoopjaxError as error:
        return Finding(
            "encoder", str(error), "the bundled encoder is damaged: install loopjax again"
        )


def _cache() -> Finding:
    from loopjax.errors import UserError
    from loopjax.parallel import enable_compilation_cache

    try:
        folder = enable_compilation_cache()
    except UserError as error:
        return Finding("cache", str(error), "make that folder writable for you alone")
    if folder is None:
        return Finding(
            "cache", "none", "the cache folder cannot be made: every start compiles anew"
        )
    n_bytes = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
    return Finding("cache", f"{folder}, {n_bytes / 1e6:.0f} MB of compiled programs")


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:
        return Finding("limits", "none on this system: decoders run without a limit on memory")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 0 <= soft < MIN_OPEN_FILES
    return Finding("limits", f"{soft} open files", "raise it: ulimit -n 1024" if low else "")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    advice = "little room for a store here" if free < MIN_FREE_BYTES else ""
    return Finding("disk", f"{free / 1e9:.0f} GB free in {Path.cwd()}", advice)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
