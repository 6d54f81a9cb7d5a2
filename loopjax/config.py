"""Strict YAML -> frozen dataclasses: one file describes one experiment.

An unknown key is an error that names the nearest known one, a wrong type is an error with the
file and line, and `--set a.b=c` overrides any key. The resolved configuration is saved with
every run, so a result can always be traced to its settings.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from loopjax.errors import UserError

MAX_YAML_NODES = 20_000  # an alias bomb expands to billions; no real config comes near this


@dataclass(frozen=True)
class DataConfig:
    """Where the loops (or ready-made embeddings) and their labels come from."""

    sources: tuple[str, ...] = ()  # files, folders, lists (.txt), tfds:NAME, bundled:demo
    embeddings: str | None = None  # a store folder, .parquet, .npy, .npz instead of audio
    sets: dict[str, str] = field(default_factory=dict)  # for protocols: name -> embeddings file
    labels: str | None = None  # CSV with `file` and `is_anomaly`; bundled:demo brings its own
    group_by: Literal["parent", "none"] = "parent"


@dataclass(frozen=True)
class EmbedConfig:
    """How audio becomes embeddings; everything that changes a number enters the store's hash."""

    encoder: str = "loopjax-nano"
    precision: Literal["fp32", "bf16", "bf16-fused"] = "fp32"  # fused: one attention kernel, GPU
    crops: str = "deterministic"  # or seeded:K
    resample: Literal["auto", "host", "device"] = "auto"
    mono: Literal["mean", "left", "mid"] = "mean"
    batch_size: int = 0  # 0 = chosen by device
    buckets_s: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
    max_duration_s: float = 600.0
    workers: int = 0  # decoding processes; 0 = chosen by core count
    decode_timeout_s: float = 60.0  # a decoder that takes longer is killed and its file rejected
    shard_rows: int = 4096
    max_failures: float = 1.0  # share of rejected files above which the run ends with exit code 4
    strict: bool = False  # stop at the first rejected file
    accept_truncated: bool = False
    sanitize: bool = False  # replace NaN/Inf samples by zeros instead of rejecting the file


@dataclass(frozen=True)
class SplitConfig:
    """Which rows train the detectors and which are held out (calibration, false-positive rate)."""

    train_fraction: float = 0.8
    seed: int = 0
    by: Literal["row", "group"] = "row"
    train_on: Literal["all", "normal"] = "all"  # normal: labeled anomalies never train


@dataclass(frozen=True)
class DetectorConfig:
    """One detector; `params` are the constructor's keyword arguments.

    `protocol_seeds` replaces the experiment's seeds in single protocols of evaluate.protocols.
    """

    name: str
    kind: Literal["deep-svdd", "isolation-forest", "pca", "knn", "mahalanobis", "mean-cosine"]
    params: dict[str, Any] = field(default_factory=dict)
    protocol_seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateConfig:
    """Thresholds, protocols and references for the tables."""

    threshold: Literal["quantile", "boxcox", "sigma", "conformal"] = "quantile"
    quantile: float = 0.95
    sigma: float = 3.0
    target_fpr: float = 0.05
    protocols: tuple[str, ...] = ()  # P1 (one folder normal), P3 (one folder anomalous)
    reference: str | None = None  # JSON with published values printed beside ours
    bootstrap: int = 1000
    # AUROC of perturbed copies against severity, per perturbation. Quick: 3 severities of 6.
    robustness: Literal["none", "quick", "full"] = "none"


@dataclass(frozen=True)
class ReportConfig:
    """The one-file HTML report."""

    top: int = 50
    audio: Literal["auto", "embed", "link", "none"] = "auto"
    title: str = ""


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, from sources to report."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    detectors: tuple[DetectorConfig, ...] = ()
    primary: str = ""  # the detector that ranks the report; default: the first
    seeds: tuple[int, ...] = (0,)
    compare_encoders: tuple[str, ...] = ()  # scored by the same detectors where labels exist
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


@dataclass(frozen=True)
class _Node:
    """A YAML value that remembers where it was written."""

    value: Any  # dict[str, _Node] | list[_Node] | scalar
    where: str


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> ExperimentConfig:
    """Reads an experiment from YAML and applies `a.b=c` overrides.

    Args:
        path: YAML file; `extends: other.yaml` (one level, relative to the file) fills in what it
            leaves out.
        overrides: strings `key.path=value`; the value is YAML; list items are addressed by index.

    Raises:
        UserError: unreadable file, invalid YAML, unknown key, wrong type; names file and line.
    """
    config = read_config(ExperimentConfig, path, overrides)
    names = [d.name for d in config.detectors]
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two detectors share a name: {', '.join(names)}")
    if config.primary and config.primary not in names:
        raise UserError(f"{path}: primary: {config.primary!r} is none of {', '.join(names)}")
    return config


def read_config(cls: type, path: str | Path, overrides: typing.Sequence[str] = ()) -> Any:
    """Reads any config dataclass from YAML; see `load_config` for the rules."""
    path = Path(path)
    tree = _read_tree(path)
    base = tree.value.pop("extends", None)
    if base is not None:
        parent = _read_tree(path.parent / str(base.value))
        if "extends" in parent.value:
            raise UserError(f"{base.where}: a config may extend one file only, one level deep")
        tree = _merge(parent, tree)
    for override in overrides:
        _apply_override(tree, override)
    return _build(cls, tree, "")


def from_dict(
    cls: type,
    values: dict[str, Any],
    where: str = "arguments",
    overrides: typing.Sequence[str] = (),
) -> Any:
    """Builds a config dataclass from plain values with the same checks as a YAML file."""
    tree = _wrap(values, where)
    for override in overrides:
        _apply_override(tree, override)
    return _build(cls, tree, "")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the resolved configuration as plain containers, ready for JSON or YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(config))


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Returns ' (did you mean X?)' for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _read_tree(path: Path) -> _Node:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read config {path}: {error}") from None
    tree = _parse(text, str(path))
    if not isinstance(tree.value, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {_kind(tree.value)}")
    return tree


def _parse(text: str, name: str) -> _Node:
    loader = yaml.SafeLoader(text)
    budget = [MAX_YAML_NODES]
    try:
        node = loader.get_single_node()
        if node is None:
            return _Node({}, name)
        return _convert(loader, node, name, budget)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    finally:
        loader.dispose()


def _convert(loader: yaml.SafeLoader, node: yaml.Node, name: str, budget: list[int]) -> _Node:
    where = f"{name}:{node.start_mark.line + 1}"
    budget[0] -= 1
    if budget[0] < 0:
        raise UserError(f"{where}: more than {MAX_YAML_NODES} values; this is not a config file")
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise UserError(f"{where}: the YAML tag {node.tag} is not allowed")
    if isinstance(node, yaml.MappingNode):
        items: dict[str, _Node] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in items:
                raise UserError(f"{name}:{key_node.start_mark.line + 1}: key {key!r} given twice")
            items[key] = _convert(loader, value_node, name, budget)
        return _Node(items, where)
    if isinstance(node, yaml.SequenceNode):
        return _Node([_convert(loader, item, name, budget) for item in node.value], where)
    return _Node(loader.construct_object(node, deep=True), where)


def _wrap(value: Any, where: str) -> _Node:
    if isinstance(value, dict):
        return _Node({str(k): _wrap(v, where) for k, v in value.items()}, where)
    if isinstance(value, list | tuple):
        return _Node([_wrap(v, where) for v in value], where)
    return _Node(value, where)


def _merge(base: _Node, over: _Node) -> _Node:
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        merged = dict(base.value)
        for key, node in over.value.items():
            merged[key] = _merge(merged[key], node) if key in merged else node
        return _Node(merged, over.where)
    return over


def _apply_override(tree: _Node, override: str) -> None:
    key_path, equals, text = override.partition("=")
    where = f"--set {override}"
    if not equals or not key_path:
        raise UserError(f"{where}: write it as --set key.path=value")
    value = _parse(text, where)
    value = _wrap(_plain(value), where)
    node = tree
    *parents, last = key_path.split(".")
    for part in parents:
        if isinstance(node.value, list):
            node = node.value[_index(part, node.value, where)]
        elif isinstance(node.value, dict):
            node = node.value.setdefault(part, _Node({}, where))
        else:
            raise UserError(f"{where}: {part!r} lies below a plain value")
    if isinstance(node.value, list):
        node.value[_index(last, node.value, where)] = value
    elif isinstance(node.value, dict):
        node.value[last] = value
    else:
        raise UserError(f"{where}: {last!r} lies below a plain value")


def _index(part: str, items: list[_Node], where: str) -> int:
    for i, item in enumerate(items):  # detectors may be addressed by their name
        if (
            isinstance(item.value, dict)
            and "name" in item.value
            and item.value["name"].value == part
        ):
            return i
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(f"{where}: {part!r} is no index or name in a list of {len(items)}")


def _plain(node: _Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(item) for item in node.value]
    return node.value


def _build(expected: Any, node: _Node, key: str) -> Any:
    """Checks one value against its annotation and converts it."""
    label = key or "the top level"
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        if not isinstance(node.value, dict):
            raise UserError(f"{node.where}: {label}: expected settings, found {_kind(node.value)}")
        hints = typing.get_type_hints(expected)
        for name, child in node.value.items():
            if name not in hints:
                full = f"{key}.{name}".lstrip(".")
                raise UserError(f"{child.where}: unknown key {full!r}{nearest(name, hints)}")
        missing = [
            f.name
            for f in dataclasses.fields(expected)
            if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and f.name not in node.value
        ]
        if missing:
            raise UserError(f"{node.where}: {label} needs the key {missing[0]!r}")
        return expected(
            **{
                name: _build(hints[name], child, f"{key}.{name}".lstrip("."))
                for name, child in node.value.items()
            }
        )
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return _plain(node)
    if origin is Literal:
        if node.value in args:
            return node.value
        choices = ", ".join(map(str, args))
        hint = nearest(str(node.value), map(str, args))
        raise UserError(f"{node.where}: {label}: {node.value!r} is none of {choices}{hint}")
    if origin in (typing.Union, types.UnionType):
        if node.value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), node, key)
    if origin is tuple and isinstance(node.value, list):
        return tuple(_build(args[0], item, f"{key}.{i}") for i, item in enumerate(node.value))
    if origin is dict and isinstance(node.value, dict):
        return {name: _plain(item) for name, item in node.value.items()}
    if expected is float and type(node.value) is int:
        return float(node.value)
    if expected is float and isinstance(node.value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            return float(node.value)
        except ValueError:
            pass
    if isinstance(expected, type) and type(node.value) is expected:
        return _plain(node)
    wanted = {"tuple": "a list", "dict": "a mapping"}.get(
        getattr(origin, "__name__", ""), getattr(expected, "__name__", str(expected))
    )
    raise UserError(
        f"{node.where}: {label}: expected {wanted}, found {_kind(node.value)} ({_plain(node)!r})"
    )


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return {dict: "a mapping", list: "a list"}.get(type(value), type(value).__name__)
