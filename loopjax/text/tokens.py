"""Texts to tokens, by a checkpoint's own tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loopjax.errors import UserError

if TYPE_CHECKING:  # an optional package
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
VOCABULARY_NAMES = ("vocab.json", "merges.txt")  # what older checkpoints have instead
LENGTH_STEP = 8  # lengths are padded to multiples: few compiled programs


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a tokenizer that lie in a folder, by name; empty if they are not all there."""
    for names in ((TOKENIZER_NAME,), VOCABULARY_NAMES):
        if all((folder / name).is_file() for name in names):
            return {name: (folder / name).read_bytes() for name in names}
    return {}


def read_tokenizer(folder: Path) -> "Tokenizer | None":
    """The tokenizer of a folder, from `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Returns:
        None where the folder holds neither.

    Raises:
        UserError: the files are damaged, or the package `tokenizers` is not installed.
    """
    single, several = folder / TOKENIZER_NAME, [folder / name for name in VOCABULARY_NAMES]
    if not single.is_file() and not all(file.is_file() for file in several):
        return None
    try:
        import tokenizers
    except ImportError:
        raise UserError("texts need tokenizers: pip install 'loopjax[text]'") from None
    try:
        if single.is_file():
            return tokenizers.Tokenizer.from_file(str(single))
        return _from_vocabulary(*map(str, several))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        name = TOKENIZER_NAME if single.is_file() else " and ".join(VOCABULARY_NAMES)
        raise UserError(f"{folder}: {name} cannot be read as a tokenizer ({error})") from None


def _from_vocabulary(vocabulary: str, merges: str) -> "Tokenizer":
    """Byte-level byte-pair encoding with RoBERTa's marks around each text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    words, pairs = models.BPE.read_file(vocabulary, merges)
    tokenizer = Tokenizer(models.BPE(words, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", words["</s>"]), ("<s>", words["<s>"]), add_prefix_space=False
    )
    tokenizer.add_special_tokens(
        ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
    )
    return tokenizer


def tokenize(
    tokenizer: "Tokenizer", texts: Sequence[str], max_tokens: int, pad_id: int
) -> np.ndarray:
    """Texts to tokens, int32 [N, T]; shorter ones are filled with `pad_id`.

    Args:
        tokenizer: as `read_tokenizer` gives it; its own settings for lengths are not used.
        texts: any.
        max_tokens: longer texts are cut, marks at both ends included.
        pad_id: see above.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    longest = max(map(len, rows), default=1)
    width = min(max_tokens, -(-longest // LENGTH_STEP) * LENGTH_STEP)
    ids = np.full((len(rows), width), pad_id, np.int32)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids
