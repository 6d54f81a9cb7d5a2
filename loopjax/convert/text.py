"""The text tower of a CLAP checkpoint onto our parameters, strictly in both directions."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loopjax.convert.hub_config import TextSettings
from loopjax.convert.layouts import TEXT_LAYOUTS, Branch, Layout, Source
from loopjax.convert.mapping import fill
from loopjax.encoders.text import TextTower
from loopjax.errors import UserError
from loopjax.text.roberta import TRAINED_TOKENS, RobertaConfig, abstract_roberta
from loopjax.text.tokens import TOKENIZER_NAME, tokenizer_files

HEAD_WIDTH = 64  # of every published RoBERTa
ROBERTA_EPS = 1e-5  # of roberta-base, which LAION's towers started from
SCALE = "logit_scale_a"
MAX_LAYERS = 128
# Tables that count up, or hold zeros: we compute them and only compare.
_COUNTED, _ZEROS = "embeddings.position_ids", "embeddings.token_type_ids"


@dataclass(frozen=True)
class MappedText:
    """A text tower in our names.

    Attributes:
        tower: ready to be written.
        used: names of the tensors that it came from.
        notes: remarks for the user that are no errors.
        assumptions: what the files do not say.
    """

    tower: TextTower
    used: set[str]
    notes: list[str]
    assumptions: list[str]


def map_text(branch: Branch, settings: TextSettings | None, folder: Path) -> MappedText | None:
    """Maps the text tower beside an audio tower.

    Args:
        branch: the checkpoint's tensors.
        settings: what Hugging Face's `config.json` says of it; None where there is none.
        folder: where the files of the tokenizer may lie.

    Returns:
        None where the file holds no RoBERTa.

    Raises:
        UserError: a parameter is missing, a tensor unused, a shape or a value wrong; lists all.
    """
    layout, source = TEXT_LAYOUTS.get(branch.layout.name), branch.source
    if layout is None or not _is_roberta(layout, source):
        return None
    assumptions = []
    if settings is None:
        width = source[f"{layout.branch}embeddings.word_embeddings.weight"].shape[-1]
        eps = ROBERTA_EPS if layout.name == "laion" else TextSettings.norm_eps
        settings = TextSettings(heads=max(1, width // HEAD_WIDTH), norm_eps=eps)
        if layout.name == "hf":
            assumptions.append(
                f"no config.json describes the text tower: {settings.heads} heads and epsilon "
                f"{eps:g} are assumed"
            )
    config = _find_config(layout, source, settings)
    filled = fill(layout, source, abstract_roberta(config)[1])
    own = [key for key in source if key.startswith((layout.branch, "text_projection."))]
    constants = {f"{layout.branch}{name}" for name in (_COUNTED, _ZEROS)}
    unused = [key for key in own if key not in filled.used | constants]
    missing = filled.missing + ([] if SCALE in source else [SCALE])
    problems = [
        *([f"missing in the file: {', '.join(missing)}"] if missing else []),
        *([f"in the file but not used: {', '.join(unused)}"] if unused else []),
        *filled.problems,
        *(f"unusual constant: {key}" for key in constants & {*own} if not _is_usual(key, source)),
    ]
    if problems:
        below = f" (names below {branch.root!r})" if branch.root else ""
        raise UserError(f"the text tower does not fit RoBERTa{below}: {'; '.join(problems)}")
    scale = float(np.asarray(source[SCALE].read(), np.float64).reshape(-1)[0])
    if not abs(scale) < 20:
        raise UserError(f"{SCALE} is {scale}: no temperature of a trained CLAP")
    files = tokenizer_files(folder)
    notes = [] if files else [
        f"no {TOKENIZER_NAME} lies beside the weights: to search by text, put the one of the text "
        "tower (LAION's: roberta-base on the Hugging Face Hub) into the folder `text` of the result"
    ]  # fmt: skip
    tower = TextTower(config, filled.weights, math.exp(scale), files)
    used = {branch.root + key for key in (filled.used | constants | {SCALE}) & {*source}}
    return MappedText(tower, used, notes, assumptions)


def _is_roberta(layout: Layout, source: Source) -> bool:
    """Whether there are words, and one type of tokens; BERT, with the same names, has two."""
    words, types = (
        source.get(f"{layout.branch}embeddings.{name}_embeddings.weight")
        for name in ("word", "token_type")
    )
    is_table = words is not None and len(words.shape) == 2
    return is_table and (types is None or types.shape[:1] == (1,))


def _find_config(layout: Layout, source: Source, settings: TextSettings) -> RobertaConfig:
    """The architecture, from shapes; what a missing tensor would say is as usual.

    Raises:
        UserError: no text tower has such sizes.
    """

    def rows(name: str, default: int) -> int:
        shape = source[name].shape if name in source else ()
        return shape[0] if shape else default

    usual = RobertaConfig()
    branch = layout.branch
    vocabulary, width = source[f"{branch}embeddings.word_embeddings.weight"].shape
    layer = re.compile(rf"{re.escape(branch)}encoder\.layer\.(\d+)\.")
    numbers = {int(match[1]) for key in source if (match := layer.match(key))}
    positions = rows(f"{branch}embeddings.position_embeddings.weight", usual.positions)
    (first,), (second,) = (rule.theirs for rule in layout.projection)
    most = positions - settings.pad_id - 1
    if (
        not 1 <= len(numbers) <= MAX_LAYERS
        or max(numbers) >= len(numbers) + 1
        or width % settings.heads
        or most < 3
        or settings.pad_id >= vocabulary
    ):
        raise UserError(
            f"no text tower: {len(numbers)} layers, width {width}, {settings.heads} heads, "
            f"{positions} positions and {vocabulary} tokens do not fit together"
        )
    return RobertaConfig(
        width=width,
        depth=max(numbers) + 1,
        heads=settings.heads,
        hidden=rows(f"{branch}encoder.layer.0.intermediate.dense.bias", 4 * width),
        vocabulary=vocabulary,
        positions=positions,
        pad_id=settings.pad_id,
        norm_eps=settings.norm_eps,
        max_tokens=min(most, TRAINED_TOKENS) if layout.name == "laion" else most,
        projection_hidden=rows(f"{first}.bias", usual.projection_hidden),
        projection_dim=rows(f"{second}.bias", usual.projection_dim),
    )


def _is_usual(key: str, source: Source) -> bool:
    stored = source[key].read().ravel()
    wanted = np.arange(stored.size) if key.endswith(_COUNTED) else np.zeros(stored.size)
    return np.array_equal(stored, wanted)
