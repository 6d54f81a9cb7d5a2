"""The settings of an experiment: one YAML file describes one experiment.

Every setting is declared here once, with its help. An unknown key is an error that names the
nearest known one, a wrong type is an error with the file and line, and `--set a.b=c` overrides any
key. The resolved configuration is saved with every run, so a result can always be traced.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from loopjax.config.settings import (
    FileName,
    Schema,
    Setting,
    build,
    build_value,
    join_key,
    json_schema,
    nearest,
    plain,
)
from loopjax.config.tree import Node, apply_override, entries, from_plain, items, merge, read_yaml
from loopjax.errors import UserError

T = TypeVar("T")

Seed = Annotated[int, Setting(at_least=0, at_most=2**32 - 1)]
Sources = Annotated[
    tuple[str, ...],
    Setting("audio files, folders, lists of paths (.txt), tfds:NAME or bundled:demo"),
]
GroupDepth = Annotated[
    int, Setting("folders below the source that name a loop's group; 0: all of them", at_least=0)
]
ProtocolName = Literal["P1", "P3", "P2-1", "P2-5", "P2-10", "unlabeled"]


@dataclass(frozen=True)
class DataConfig:
    """Where the loops (or ready-made embeddings) and their labels come from."""

    sources: Sources = ()
    embeddings: Annotated[
        str | None, Setting("a store folder, .parquet, .npy or .npz instead of audio")
    ] = None
    sets: Annotated[
        dict[FileName, str], Setting("for evaluate.protocols: a name -> an embeddings file")
    ] = field(default_factory=dict)
    labels: Annotated[
        str | None, Setting("CSV with `file` and `is_anomaly`; bundled:demo brings its own")
    ] = None
    group_depth: GroupDepth = 0


@dataclass(frozen=True)
class EmbedConfig:
    """How audio becomes embeddings; everything that changes a number enters the store's hash."""

    encoder: Annotated[str, Setting("bundled name, known name or converted folder")] = (
        "loopjax-nano"
    )
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "bf16-fast", "bf16-fused"],
        Setting("arithmetic, exact to fast; auto: fp32 on a CPU, bf16 on accelerators"),
    ] = "auto"
    crops: Annotated[
        str,
        Setting(
            "long clips: deterministic, or seeded:K to average K random draws",
            pattern="deterministic|seeded:[1-9][0-9]{0,5}",
            form="deterministic, or seeded:K with K draws to average",
        ),
    ] = "deterministic"
    resample: Annotated[
        Literal["auto", "host", "device"],
        Setting("where sample rates change: host as the reference does, device for speed"),
    ] = "auto"
    mono: Annotated[Literal["mean", "left", "mid"], Setting("what becomes of several channels")] = (
        "mean"
    )
    batch_size: Annotated[int, Setting("clips per step; 0: chosen by the device", at_least=0)] = 0
    buckets_s: Annotated[
        tuple[Annotated[float, Setting(above=0)], ...],
        Setting("lengths that clips are padded to", filled=True),
    ] = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
    include: Annotated[
        tuple[str, ...], Setting("patterns of files to take from folders, like *kick* or Bass/*")
    ] = ()
    exclude: Annotated[tuple[str, ...], Setting("patterns of files and folders to leave out")] = ()
    min_duration_s: Annotated[float, Setting("shorter files are rejected", at_least=0)] = 0.0
    max_duration_s: Annotated[float, Setting("longer files are rejected", above=0)] = 600.0
    workers: Annotated[
        int, Setting("decoding processes; 0: chosen by the number of cores", at_least=0)
    ] = 0
    decode_timeout_s: Annotated[
        float, Setting("a file that takes longer to decode is rejected", above=0)
    ] = 60.0
    shard_rows: Annotated[int, Setting("rows per file of the store", at_least=1)] = 4096
    max_failures: Annotated[
        float,
        Setting("rejected fraction above which it ends with code 4", at_least=0, at_most=1),
    ] = 1.0
    strict: Annotated[bool, Setting("stop at the first rejected file")] = False
    accept_truncated: Annotated[bool, Setting("keep files that were cut off, flagged")] = False
    sanitize: Annotated[
        bool, Setting("replace NaN and infinite samples by zeros, flagged, not rejected")
    ] = False


@dataclass(frozen=True)
class SplitConfig:
    """Which loops fit the detectors, and the folds in which they are scored unseen."""

    max_rows: Annotated[
        int, Setting("at most this many loops, drawn from all, fit; the rest is scored", at_least=1)
    ] = 1_000_000
    train_fraction: Annotated[
        float, Setting("fraction that fits; the rest only measures", above=0, at_most=1)
    ] = 1.0
    folds: Annotated[
        int, Setting("each is scored by detectors fitted on the others", at_least=2, at_most=100)
    ] = 5
    near_duplicate_cosine: Annotated[
        float, Setting("loops at least this similar are never parted", above=0, at_most=1)
    ] = 0.999
    seed: Annotated[Seed, Setting("another seed, another split")] = 0
    by: Annotated[
        Literal["row", "group"], Setting("group: a folder trains as a whole or not at all")
    ] = "row"
    train_on: Annotated[
        Literal["all", "normal"], Setting("normal: loops labeled anomalous never train")
    ] = "all"


@dataclass(frozen=True)
class DetectorConfig:
    """One detector."""

    name: Annotated[FileName, Setting("what tables, files and --set call it")]
    kind: Annotated[str, Setting("the method")]
    params: Annotated[dict[str, object], Setting("the constructor's keyword arguments")] = field(
        default_factory=dict
    )
    protocol_seeds: Annotated[
        dict[ProtocolName, tuple[Seed, ...]],
        Setting("the seeds of single protocols, where they are not the experiment's"),
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateConfig:
    """Thresholds, protocols and references for the tables."""

    threshold: Annotated[
        Literal["quantile", "boxcox", "sigma", "conformal"],
        Setting("how the threshold follows from the training scores"),
    ] = "quantile"
    quantile: Annotated[float, Setting("for threshold: quantile", above=0, below=1)] = 0.95
    sigma: Annotated[float, Setting("standard deviations for threshold: sigma", above=0)] = 3.0
    target_fpr: Annotated[
        float, Setting("false-positive rate for threshold: conformal", above=0, below=1)
    ] = 0.05
    fdr: Annotated[
        float, Setting("false-discovery rate of the loops that are counted", above=0, below=1)
    ] = 0.1
    protocols: Annotated[
        tuple[ProtocolName, ...],
        # P1: one folder is normal; P3: one is anomalous; P2-5: it is, and 5 % of such loops train.
        Setting("what is done with each of data.sets; unlabeled: the paper's way"),
    ] = ()
    reference: Annotated[str | None, Setting("JSON with published values, printed beside ours")] = (
        None
    )
    bootstrap: Annotated[int, Setting("resamples for confidence intervals", at_least=0)] = 1000
    robustness: Annotated[
        Literal["none", "quick", "full"],
        Setting(
            "robustness curve: how strong must a perturbation be; quick: 3 severities of 6",
            formerly="ladder",
        ),
    ] = "none"


@dataclass(frozen=True)
class ReportConfig:
    """The HTML report."""

    top: Annotated[
        int, Setting("loops with a waveform, a spectrum and a playable copy", at_least=1)
    ] = 500
    audio: Annotated[
        Literal["auto", "embed", "files", "link", "none"],
        Setting("inside the page, in files beside it, as links to the loops, or not at all"),
    ] = "auto"
    reasons: Annotated[
        int, Setting("flagged loops of which is told where they stand out", at_least=0)
    ] = 12
    title: Annotated[str, Setting("heading of the page")] = ""


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, from sources to report."""

    name: Annotated[FileName, Setting("the run folder is called so")]
    data: Annotated[DataConfig, Setting("loops and labels")] = field(default_factory=DataConfig)
    embed: Annotated[EmbedConfig, Setting("from audio to embeddings")] = field(
        default_factory=EmbedConfig
    )
    split: Annotated[SplitConfig, Setting("rows that train")] = field(default_factory=SplitConfig)
    detectors: Annotated[tuple[DetectorConfig, ...], Setting("the methods to compare")] = ()
    primary: Annotated[str, Setting("the detector that ranks the report; empty: the first")] = ""
    seeds: Annotated[
        tuple[Seed, ...], Setting("one fit each, where the method is random", filled=True)
    ] = (0,)
    compare_encoders: Annotated[
        tuple[str, ...], Setting("encoders scored by the same detectors where labels exist")
    ] = ()
    evaluate: Annotated[EvaluateConfig, Setting("tables")] = field(default_factory=EvaluateConfig)
    report: Annotated[ReportConfig, Setting("HTML page")] = field(default_factory=ReportConfig)


class DetectorCatalog(Protocol):
    """What a config must know about detectors; `loopjax.detectors` is one."""

    def detector_kinds(self) -> Sequence[str]:
        """The kinds there are."""
        ...

    def parameter_types(self, kind: str) -> Mapping[str, Any]:
        """The hyper-parameters of a kind with their annotations."""
        ...

    def check_parameters(self, kind: str, params: Mapping[str, Any]) -> None:
        """Raises `UserError` where a value is out of range."""
        ...


def read_experiment(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    detectors: DetectorCatalog | None = None,
) -> ExperimentConfig:
    """Reads an experiment from YAML and applies `a.b=c` overrides.

    Args:
        path: YAML file; `extends: other.yaml` (one level, relative to the file) fills in what it
            leaves out.
        overrides: strings `key.path=value`; the value is YAML; list items are addressed by index,
            detectors also by name.
        detectors: checks kinds and hyper-parameters as well.

    Raises:
        UserError: unreadable file, invalid YAML, unknown key, wrong type; names file and line.
    """
    return _experiment(_read_tree(Path(path), overrides), detectors)


def experiment_from_dict(
    values: Mapping[str, object],
    where: str,
    overrides: Sequence[str] = (),
    *,
    detectors: DetectorCatalog | None = None,
) -> ExperimentConfig:
    """An experiment from plain values, with the checks of `read_experiment`; errors say `where`.

    Raises:
        UserError: see `read_experiment`.
    """
    tree = from_plain(values, where)
    for override in overrides:
        apply_override(tree, override)
    return _experiment(tree, detectors)


def read_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Reads any settings class from YAML; see `read_experiment` for the rules."""
    return build(cls, _read_tree(Path(path), overrides))


def from_dict(cls: type[T], values: Mapping[str, object], where: str = "arguments") -> T:
    """Builds a settings class from plain values with the same checks as a YAML file."""
    return build(cls, from_plain(values, where))


def to_dict(config: object) -> dict[str, Any]:
    """The resolved configuration as plain containers, ready for JSON or YAML."""
    return plain(config)


def config_schema(detectors: DetectorCatalog) -> Schema:
    """The JSON Schema of an experiment file, for editors that complete and check YAML."""
    schema = json_schema(ExperimentConfig)
    detector = schema["properties"]["detectors"]["items"]
    detector["properties"]["kind"]["enum"] = list(detectors.detector_kinds())
    detector["allOf"] = [
        {
            "if": {"properties": {"kind": {"const": kind}}},
            "then": {"properties": {"params": _parameter_schema(detectors, kind)}},
        }
        for kind in detectors.detector_kinds()
    ]
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "another file, relative to this one, that fills in what is left out",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "loopjax experiment",
        **schema,
    }


def _read_tree(path: Path, overrides: Sequence[str]) -> Node:
    tree = read_yaml(path)
    base = entries(tree).pop("extends", None)
    if base is not None:
        if not isinstance(base.value, str):
            raise UserError(f"{base.where}: extends: expected the path of another file")
        try:
            parent = read_yaml(path.parent / base.value)
        except UserError as error:
            raise UserError(f"{base.where}: extends: {error}") from None
        if "extends" in entries(parent):
            raise UserError(f"{base.where}: a config may extend one file only, one level deep")
        tree = merge(parent, tree)
    for override in overrides:
        apply_override(tree, override)
    return tree


def _experiment(tree: Node, catalog: DetectorCatalog | None) -> ExperimentConfig:
    config = build(ExperimentConfig, tree)
    given = entries(tree)
    names = [d.name for d in config.detectors]
    folded = [name.casefold() for name in names]
    if len(set(folded)) != len(names):
        raise UserError(
            f"{given['detectors'].where}: two detectors share a name: {', '.join(names)}"
        )
    if config.primary and config.primary not in names:
        raise UserError(
            f"{given['primary'].where}: primary: {config.primary!r} is none of {', '.join(names)}"
        )
    if len(set(config.seeds)) != len(config.seeds):
        raise UserError(
            f"{given['seeds'].where}: seeds: a seed is given twice: {list(config.seeds)}"
        )
    if catalog is None or not config.detectors:
        return config
    nodes = items(given["detectors"])
    typed = [
        _checked_detector(detector, node, catalog)
        for detector, node in zip(config.detectors, nodes, strict=True)
    ]
    return dataclasses.replace(config, detectors=tuple(typed))


def _checked_detector(
    detector: DetectorConfig, node: Node, catalog: DetectorCatalog
) -> DetectorConfig:
    """The detector with its parameters in the constructor's types."""
    given = entries(node)
    key = join_key("detectors", detector.name)
    kinds = catalog.detector_kinds()
    if detector.kind not in kinds:
        raise UserError(
            f"{given['kind'].where}: {key}.kind: {detector.kind!r} is none of {', '.join(kinds)}"
            f"{nearest(detector.kind, kinds)}"
        )
    key = join_key(key, "params")
    types = catalog.parameter_types(detector.kind)
    params: dict[str, object] = {}
    for name, child in entries(given["params"]).items() if "params" in given else ():
        if name not in types:
            raise UserError(
                f"{child.where}: {join_key(key, name)}: {detector.kind} has no such parameter"
                f"{nearest(name, types)}; it has {', '.join(types)}"
            )
        params[name] = build_value(types[name], child, join_key(key, name))
    try:
        catalog.check_parameters(detector.kind, params)
    except UserError as error:
        where = given["params"].where if "params" in given else node.where
        raise UserError(f"{where}: {key}: {error}") from None
    return dataclasses.replace(detector, params=params)


def _parameter_schema(detectors: DetectorCatalog, kind: str) -> Schema:
    types = detectors.parameter_types(kind)
    return {
        "type": "object",
        "properties": {name: json_schema(expected) for name, expected in types.items()},
        "additionalProperties": False,
    }
