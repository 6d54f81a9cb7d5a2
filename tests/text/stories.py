"""A small byte-level tokenizer, as RoBERTa's is, learned from a few sentences."""

import json
from pathlib import Path

TEXTS = (
    "dusty upright bass",
    "a warm, dusty upright bass loop with vinyl crackle",
    "kick",
    "Bright synth arpeggio, 120 BPM — très joli!",
)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write_tokenizer(folder: Path, n_tokens: int = 320, single: bool = True) -> None:
    """Writes `tokenizer.json`, or `vocab.json` and `merges.txt`, of at most `n_tokens`."""
    from tokenizers import ByteLevelBPETokenizer

    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(TEXTS * 3, vocab_size=n_tokens, special_tokens=SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    learner.save_model(str(folder))
    if single:
        from loopjax.text.tokens import read_tokenizer

        read_tokenizer(folder).save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    else:
        assert json.loads((folder / "vocab.json").read_text())["</s>"] == 2
