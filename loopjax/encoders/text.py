"""The text tower beside an encoder: sentences into the space that its sounds project into.

It lies in the folder `text` of an encoder's: weights, `config.json`, and the tokenizer of the
checkpoint.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from loopjax.encoders.encoder import fill_state, matmul_precision, weights_digest
from loopjax.encoders.space import checked
from loopjax.errors import UserError
from loopjax.io import write_json
from loopjax.json_files import read_json
from loopjax.text.roberta import RobertaConfig, abstract_roberta
from loopjax.text.tokens import TOKENIZER_NAME, read_tokenizer, tokenize

if TYPE_CHECKING:  # an optional package
    from tokenizers import Tokenizer

TEXT_FOLDER = "text"
FORMAT = "loopjax-text-1"
BATCH = 64  # texts at once
_MAX_DEPTH, _MAX_WIDTH = 128, 1 << 16  # beyond, a record names no network


@dataclass(frozen=True)
class TextTower:
    """A text tower as it is stored.

    Attributes:
        config: architecture.
        weights: float32 arrays by flat name.
        logit_scale: what cosines of sounds are multiplied with for probabilities of texts.
        tokenizer: the files of its tokenizer by name; none where the checkpoint came without.
    """

    config: RobertaConfig
    weights: dict[str, np.ndarray]
    logit_scale: float
    tokenizer: Mapping[str, bytes]


def write_text_tower(folder: Path, tower: TextTower) -> None:
    """Writes a text tower into the folder of an encoder that is being written."""
    from loopjax.arrays import write_arrays

    place = folder / TEXT_FOLDER
    place.mkdir()
    write_arrays(place / "weights", tower.weights)
    for name, content in tower.tokenizer.items():
        (place / name).write_bytes(content)
    record = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(tower.config),
        "weights_sha256": weights_digest(tower.weights),
        "logit_scale": tower.logit_scale,
    }
    write_json(place / "config.json", record)


class TextEncoder:
    """Texts in, unit vectors of the joint space out."""

    def __init__(self, tower: TextTower, tokenizer: "Tokenizer"):
        """Binds the weights, which must fit.

        Raises:
            ValueError: a name or shape does not fit the architecture; lists them.
        """
        self.config, self.logit_scale = tower.config, tower.logit_scale
        self._tokenizer = tokenizer
        graphdef, abstract = abstract_roberta(tower.config)
        self._params = fill_state(abstract, tower.weights, "fp32")

        @jax.jit
        def encode(params: nnx.State, ids: jax.Array) -> jax.Array:
            with matmul_precision("fp32"):
                return nnx.merge(graphdef, params)(ids)

        self._encode = encode

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 [N, P] of unit length.

        Raises:
            UserError: no text, or an empty one, or a token that the tower does not know.
        """
        if not texts or not all(text.strip() for text in texts):
            raise UserError("a text query needs words")
        config = self.config
        ids = tokenize(self._tokenizer, texts, config.max_tokens, config.pad_id)
        if ids.max() >= config.vocabulary:
            raise UserError(
                f"the tokenizer gives token {ids.max()}, the text tower knows {config.vocabulary}: "
                "they do not belong together"
            )
        parts = []
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            size = 1 << (len(part) - 1).bit_length()  # few compiled programs
            padded = np.pad(part, ((0, size - len(part)), (0, 0)), mode="edge")
            parts.append(np.asarray(self._encode(self._params, padded))[: len(part)])
        return np.concatenate(parts)


def read_text_encoder(folder: Path) -> TextEncoder:
    """The text tower of an encoder folder that has one.

    Raises:
        UserError: damaged, without a tokenizer, or `tokenizers` is not installed.
    """
    from loopjax.arrays import read_arrays

    place = folder / TEXT_FOLDER
    tokenizer = read_tokenizer(place)
    if tokenizer is None:
        raise UserError(
            f"{folder} came without a tokenizer: put the {TOKENIZER_NAME} of its text tower "
            f"(LAION's: roberta-base on the Hugging Face Hub) into {place}"
        )
    try:
        record = read_json(place / "config.json")
        if record.get("format") != FORMAT:
            raise ValueError(f"format {record.get('format')!r}, not {FORMAT!r}")
        config = _architecture(record["architecture"])
        weights = {
            name: np.asarray(array, np.float32)
            for name, array in read_arrays(place / "weights").items()
        }
        if weights_digest(weights) != record["weights_sha256"]:
            raise ValueError("the weights do not match their recorded hash")
        tower = TextTower(config, weights, float(record["logit_scale"]), {})
        return TextEncoder(tower, tokenizer)
    except (OSError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{place} is damaged ({reason}); convert or fetch it again") from None


def _architecture(values: dict[str, object]) -> RobertaConfig:
    """An architecture from a record, which must be no larger than networks are.

    Raises:
        TypeError, ValueError: it is not; says why.
    """
    found = checked(RobertaConfig, values)
    sizes = (found.width, found.hidden, found.projection_hidden, found.projection_dim)
    usable = found.positions - found.pad_id - 1
    if (
        not all(1 <= size <= _MAX_WIDTH for size in sizes)
        or not 1 <= found.depth <= _MAX_DEPTH
        or not 1 <= found.heads <= found.width
        or found.width % found.heads
        or not 2 < found.max_tokens <= usable
        or not 0 <= found.pad_id < found.vocabulary <= 1 << 24
    ):
        raise ValueError(f"no text tower has the sizes {found}")
    return found
