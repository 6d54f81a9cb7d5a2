"""The published HTS-AT weights this package knows by name: facts about files, no code that loads.

Hashes and sizes are those on which several independent public projects agree; `None` = not known.
"""

from dataclasses import dataclass
from typing import Any

_LAION_CODE = "CC0-1.0 (model repository)"
_HUB = "Apache-2.0 (model card)"
_MIT = "MIT (code repository)"

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # names every Hugging Face folder uses


@dataclass(frozen=True)
class KnownEncoder:
    """One published checkpoint.

    Attributes:
        name: what `load_encoder` and `loopjax encoders` call it.
        repository: on the Hugging Face Hub; None = elsewhere, see `origin`.
        files: the weights first, then what describes them.
        dims: width of the embedding.
        fusion: whether long clips are fused from four views.
        license: as its publishers state it.
        size: of the weights file.
        sha256: of the weights file.
        revision: the Hub commit that the hash belongs to.
        origin: where to find it when it is not on the Hub.
    """

    name: str
    repository: str | None
    files: tuple[str, ...]
    dims: int
    fusion: bool
    license: str
    size: str
    sha256: str | None = None
    revision: str | None = None
    origin: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether it is known which file exactly is meant."""
        return self.sha256 is not None and (self.repository is None or self.revision is not None)

    @property
    def source(self) -> str:
        """A page a person can open."""
        return f"https://huggingface.co/{self.repository}" if self.repository else self.origin


def _laion(stem: str, dims: int, fusion: bool, **facts: Any) -> KnownEncoder:
    size = "2.35 GB" if dims == 1024 else "about 1.9 GB"
    return KnownEncoder(
        stem, "lukewys/laion_clap", (f"{stem}.pt",), dims, fusion, _LAION_CODE, size, **facts
    )


def _hub(name: str, weights: str, dims: int, fusion: bool, **facts: Any) -> KnownEncoder:
    files = (weights, "config.json", "preprocessor_config.json", "tokenizer.json")
    size = "0.78 GB" if dims == 1024 else "about 0.61 GB"
    return KnownEncoder(name, name, files, dims, fusion, _HUB, size, **facts)


KNOWN = (
    _hub(
        "laion/clap-htsat-fused",
        "model.safetensors",
        768,
        True,
        sha256="3f648de6d030e17494be455d323b8d191233fbae0c7ce0ba745fd21a926a63a6",
        revision="365dea6ef167def6676140ed93bbc43f84dabb28",
    ),
    _hub("laion/clap-htsat-unfused", "model.safetensors", 768, False),
    _hub(
        "laion/larger_clap_music",
        "pytorch_model.bin",
        1024,
        False,
        sha256="5c289311f4a030d768af7ffbfdecd01b008aa64824211899a4e59f4f9d154fd1",
        revision="a0b4534a14f58e20944452dff00a22a06ce629d1",
    ),
    _hub("laion/larger_clap_general", "pytorch_model.bin", 1024, False),
    _hub("laion/larger_clap_music_and_speech", "pytorch_model.bin", 1024, False),
    _laion(
        "music_audioset_epoch_15_esc_90.14",
        1024,
        False,
        sha256="fae3e9c087f2909c28a09dc31c8dfcdacbc42ba44c70e972b58c1bd1caf6dedd",
        revision="b3708341862f581175dba5c356a4ebf74a9b6651",
    ),
    _laion("music_speech_epoch_15_esc_89.25", 1024, False),
    _laion("music_speech_audioset_epoch_15_esc_89.98", 1024, False),
    _laion("630k-audioset-fusion-best", 768, True),
    _laion("630k-audioset-best", 768, False),
    _laion("630k-fusion-best", 768, True),
    _laion("630k-best", 768, False),
    KnownEncoder(
        "HTSAT_AudioSet_Saved_1",
        None,
        ("HTSAT_AudioSet_Saved_1.ckpt",),
        768,
        False,
        _MIT,
        "0.13 GB or more",
        origin="https://github.com/RetroCirce/HTS-Audio-Transformer (its Google Drive)",
    ),
    KnownEncoder(
        "msclap-2023", "microsoft/msclap", ("CLAP_weights_2023.pth",), 768, False, _MIT, "unknown"
    ),
)


def known_encoder(name: str) -> KnownEncoder | None:
    """The entry of a name; `clap-htsat-fused` also finds `laion/clap-htsat-fused`."""
    return next((k for k in KNOWN if name in (k.name, k.name.rsplit("/", 1)[-1])), None)


def identify(file_name: str, sha256: str) -> tuple[KnownEncoder | None, list[str]]:
    """The entry whose weights a file is, by hash or else by name; and what to tell about that.

    Args:
        file_name: of the weights.
        sha256: of the weights.
    """
    for k in KNOWN:
        if k.sha256 == sha256:
            return k, []
    for k in KNOWN:
        if k.files[0] != file_name or k.files[0] in HUB_WEIGHTS:
            continue
        if k.sha256 is None:
            return k, [f"taken for {k.name} by its file's name alone: its hash is not known here"]
        return None, [
            f"the file is called like the published {k.name} but is another one (its sha256 is "
            f"{sha256}, not {k.sha256}): neither that name nor its license applies"
        ]
    return None, []
