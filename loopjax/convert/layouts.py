"""How published checkpoints name the parameters of HTS-AT: four layouts, one table each.

LAION-CLAP, Hugging Face CLAP, RetroCirce's HTS-AT and Microsoft CLAP share one network; the tables
read from our module path to theirs, so that a missing tensor can be reported in the file's names.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from loopjax.errors import UserError


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a checkpoint that is read only when it is needed."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Source = Mapping[str, LazyTensor]


class Kernel(Enum):
    """How a PyTorch weight turns into our kernel, by kind of layer."""

    LINEAR = "[out, in] -> [in, out]"
    POINTWISE = "[out, in, 1, 1] -> [in, out]"
    PATCHES = "[out, 1, mel, time] -> [mel * time, out]"
    CONV = "[out, in, h, w] -> [h, w, in, out]"

    def convert(self, weight: np.ndarray) -> np.ndarray:
        """PyTorch's weight in our layout; [1, out] stays where the source has the wrong rank."""
        if self is Kernel.CONV:
            return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight
        flat = weight
        if self._fits(weight.shape):
            flat = weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))
        return flat.T if flat.ndim == 2 else flat

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return {
            Kernel.LINEAR: len(shape) == 2,
            Kernel.POINTWISE: len(shape) == 4 and shape[2:] == (1, 1),
            Kernel.PATCHES: len(shape) == 4 and shape[1] == 1,
        }[self]


@dataclass(frozen=True)
class Rule:
    """One line of a layout: our module (a regex) comes from that module of the file.

    Several sources are joined along the output axis, in order.
    """

    ours: str
    theirs: tuple[str, ...]
    kernel: Kernel = Kernel.LINEAR


LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "rel_bias": "relative_position_bias_table",
    "embedding": "weight",
}

_BLOCK, _THEIR_BLOCK = r"stages\.(\d+)\.blocks\.(\d+)\.", r"layers.\1.blocks.\2."


def _aff_rules() -> tuple[Rule, ...]:
    """AFF-2D's two paths are numbered Sequentials; the global one starts with a pooling."""
    return tuple(
        Rule(
            rf"patch_embed\.aff\.{path}_path\.{layer}",
            (f"patch_embed.fusion_model.{path}_att.{index + offset}",),
            Kernel.POINTWISE,
        )
        for path, offset in (("local", 0), ("global", 1))
        for layer, index in (("conv1", 0), ("bn1", 1), ("conv2", 3), ("bn2", 4))
    )


_SHARED = (
    Rule(r"patch_embed\.proj", ("patch_embed.proj",), Kernel.PATCHES),
    Rule(r"patch_embed\.norm", ("patch_embed.norm",)),
    Rule(r"patch_embed\.mel_conv", ("patch_embed.mel_conv2d",), Kernel.PATCHES),
    *_aff_rules(),
    Rule(r"stages\.(\d+)\.merge\.(norm|reduction)", (r"layers.\1.downsample.\2",)),
    Rule("norm", ("norm",)),
)
_LAION_RULES = (
    *_SHARED,
    Rule("bn0", ("bn0",)),
    Rule(_BLOCK + r"(norm[12]|attn|attn\.qkv|attn\.proj|mlp\.fc[12])", (_THEIR_BLOCK + r"\3",)),
    Rule("tscam", ("tscam_conv",), Kernel.CONV),
)
_HF_RULES = (
    *_SHARED,
    Rule("bn0", ("batch_norm",)),
    Rule(_BLOCK + "norm1", (_THEIR_BLOCK + "layernorm_before",)),
    Rule(_BLOCK + "norm2", (_THEIR_BLOCK + "layernorm_after",)),
    Rule(_BLOCK + "attn", (_THEIR_BLOCK + "attention.self",)),
    Rule(
        _BLOCK + r"attn\.qkv",
        tuple(_THEIR_BLOCK + f"attention.self.{part}" for part in ("query", "key", "value")),
    ),
    Rule(_BLOCK + r"attn\.proj", (_THEIR_BLOCK + "attention.output.dense",)),
    Rule(_BLOCK + r"mlp\.fc1", (_THEIR_BLOCK + "intermediate.dense",)),
    Rule(_BLOCK + r"mlp\.fc2", (_THEIR_BLOCK + "output.dense",)),
)
_TEXT_LAYER, _THEIR_TEXT_LAYER = r"layers\.(\d+)\.", r"encoder.layer.\1."
_ROBERTA_RULES = (
    Rule("words", ("embeddings.word_embeddings",)),
    Rule("positions", ("embeddings.position_embeddings",)),
    Rule("token_types", ("embeddings.token_type_embeddings",)),
    Rule("norm", ("embeddings.LayerNorm",)),
    Rule(
        _TEXT_LAYER + r"attention\.qkv",
        tuple(_THEIR_TEXT_LAYER + f"attention.self.{part}" for part in ("query", "key", "value")),
    ),
    Rule(_TEXT_LAYER + r"attention\.out", (_THEIR_TEXT_LAYER + "attention.output.dense",)),
    Rule(_TEXT_LAYER + "attention_norm", (_THEIR_TEXT_LAYER + "attention.output.LayerNorm",)),
    Rule(_TEXT_LAYER + "fc1", (_THEIR_TEXT_LAYER + "intermediate.dense",)),
    Rule(_TEXT_LAYER + "fc2", (_THEIR_TEXT_LAYER + "output.dense",)),
    Rule(_TEXT_LAYER + "norm", (_THEIR_TEXT_LAYER + "output.LayerNorm",)),
    Rule("pooler", ("pooler.dense",)),
)


@dataclass(frozen=True)
class Layout:
    """How one family of checkpoints names things.

    Attributes:
        name: laion, hf, retrocirce, msclap or bare.
        branch: prefix of the tower.
        rules: inside the tower.
        projection: outside it, the joint-space projection.
        ignored: regexes of what has no place in the tower: the other one, training state.
    """

    name: str
    branch: str
    rules: tuple[Rule, ...]
    projection: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()

    def sources(self, ours: str) -> tuple[tuple[str, ...], Kernel]:
        """The file's names of one of our parameters, and how its kernel turns."""
        module, leaf = ours.rsplit(".", 1)
        prefixed = [(self.branch, rule) for rule in self.rules]
        for prefix, rule in prefixed + [("", rule) for rule in self.projection]:
            match = re.fullmatch(rule.ours, module)
            if match:
                names = (f"{prefix}{match.expand(n)}.{LEAVES[leaf]}" for n in rule.theirs)
                return tuple(names), rule.kernel
        raise KeyError(f"layout {self.name} has no rule for {ours}")

    def is_ignored(self, key: str) -> bool:
        """Whether a key is passed over by name."""
        unused = rf"{re.escape(self.branch)}(.*\.num_batches_tracked|head\.(weight|bias))"
        return any(re.fullmatch(pattern, key) for pattern in (unused, *self.ignored))


def _projection(*names: str) -> tuple[Rule, ...]:
    ours = ("projection.fc1", "projection.fc2", "projection.norm")
    return tuple(Rule(re.escape(o), (n,)) for o, n in zip(ours[: len(names)], names, strict=True))


_CLAP_TEXT = (r"logit_scale_[at]", r"text_(model|branch|transform|projection)\..*")
_LAION = Layout(
    "laion",
    "audio_branch.",
    _LAION_RULES,
    _projection("audio_projection.0", "audio_projection.2"),
    (*_CLAP_TEXT, r"audio_transform\..*"),  # an MLP of the training loss alone
)
_HF = Layout(
    "hf",
    "audio_model.audio_encoder.",
    _HF_RULES,
    _projection("audio_projection.linear1", "audio_projection.linear2"),
    _CLAP_TEXT,
)
LAYOUTS = (
    _LAION,
    _HF,
    dataclasses.replace(_HF, branch="audio_encoder.", projection=()),  # ClapAudioModel
    Layout("retrocirce", "sed_model.", _LAION_RULES),
    Layout(
        "msclap",  # below audio_encoder. or, in the captioning model, below clap.
        "base.htsat.",
        _LAION_RULES,
        _projection(*(f"projection.{n}" for n in ("linear1", "linear2", "layer_norm"))),
    ),
)
# The text tower beside an audio tower, by the layout of the latter.
TEXT_LAYOUTS = {
    "laion": Layout(
        "laion",
        "text_branch.",
        _ROBERTA_RULES,
        _projection("text_projection.0", "text_projection.2"),
    ),
    "hf": Layout(
        "hf",
        "text_model.",
        _ROBERTA_RULES,
        _projection("text_projection.linear1", "text_projection.linear2"),
    ),
}
_BARE = Layout("bare", "", _LAION_RULES)  # LAION's or RetroCirce's, saved without its model
_BARE_HF = dataclasses.replace(_HF, branch="", projection=())

# What training and compiling put into names, wherever it stands.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Containers of weights in a training file, the preferred one first; optimizers hold none.
_CONTAINERS = ("", "state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged|teacher|momentum)", re.IGNORECASE)
_NO_WEIGHTS = re.compile(
    r"optimizers?(_states?|_state_dict)?|(lr_)?schedulers?|\w*rng_states?|scaler"
)


@dataclass(frozen=True)
class Branch:
    """An audio tower found in a file.

    Attributes:
        layout: how its tensors are named.
        root: what stands before these names in the file.
        source: the tensors below the root, by their names without it.
        elsewhere: names of the tensors that are not below the root.
        notes: what a person should know about the choice.
    """

    layout: Layout
    root: str
    source: Source
    elsewhere: list[str]
    notes: list[str]


def find_branch(source: Source) -> Branch:
    """Finds the audio tower, however deep wrappers and containers have hidden it.

    Raises:
        UserError: no HTS-AT inside; names a few of the keys found.
    """
    source = _without_wrappers(source)
    prefixes = {
        key[: match.start()]
        for key in source
        if (match := re.search(r"(?:^|(?<=\.))patch_embed\.", key))
    }
    branches = [_layout_below(prefix, source) for prefix in prefixes]
    branches = [branch for branch in branches if not _is_training_state(branch[1])]
    if not branches:
        some = ", ".join(sorted(source)[:5]) or "none at all"
        known = ", ".join(f"{layout.name}: {layout.branch}*" for layout in LAYOUTS)
        raise UserError(
            f"no HTS-AT found: none of the known layouts ({known}) matches the keys ({some}, ...)"
        )
    branches.sort(key=lambda branch: _preference(branch[1]))
    layout, root = branches[0]
    notes = []
    if len(branches) > 1:
        others = ", ".join(repr(other) for _, other in branches[1:])
        notes.append(f"several towers in the file: the one below {root!r} is used, not {others}")
    is_below = {key: key.startswith(root) and not _is_training_state(key) for key in source}
    below = {key.removeprefix(root): source[key] for key in source if is_below[key]}
    return Branch(layout, root, below, [key for key in source if not is_below[key]], notes)


def _is_training_state(key: str) -> bool:
    return _NO_WEIGHTS.fullmatch(key.split(".")[0]) is not None


def _without_wrappers(source: Source) -> Source:
    plain = {_WRAPPERS.sub("", key): tensor for key, tensor in source.items()}
    return plain if len(plain) == len(source) else source


def _layout_below(prefix: str, source: Source) -> tuple[Layout, str]:
    """The layout of the tower whose names start with `prefix`, and the root before the layout."""
    for layout in LAYOUTS:
        if prefix == layout.branch or prefix.endswith(f".{layout.branch}"):
            return layout, prefix.removesuffix(layout.branch)
    is_hf = any(key.startswith(f"{prefix}batch_norm.") for key in source)
    return (_BARE_HF if is_hf else _BARE), prefix


def _preference(root: str) -> tuple[bool, int, int, str]:
    container = root.split(".")[0]
    known = _CONTAINERS.index(container) if container in _CONTAINERS else len(_CONTAINERS)
    return _AVERAGED.search(root) is not None, known, root.count("."), root
