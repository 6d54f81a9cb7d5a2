"""The settings of training through an encoder: one YAML file describes one fine-tuning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from loopjax.config import (
    DetectorConfig,
    EmbedConfig,
    GroupDepth,
    Seed,
    Sources,
    read_config,
)
from loopjax.config.settings import FileName, Setting
from loopjax.errors import UserError


@dataclass(frozen=True)
class LoopsConfig:
    """The loops that train the encoder, and those that it is measured on."""

    sources: Sources = ()
    group_depth: GroupDepth = 0
    group_column: Annotated[
        str | None,
        Setting("column of records (Parquet, tar shards, hf:) that names a loop's group instead"),
    ] = None
    holdout: Annotated[
        float,
        Setting("fraction that only picks the best step", at_least=0, at_most=0.5),
    ] = 0.1
    measure_on: Annotated[
        tuple[str, ...], Setting("other loops for the tables before and after; default: sources")
    ] = ()
    labels: Annotated[
        str | None,
        Setting("CSV with `file` and `is_anomaly` for the tables; bundled:demo brings its own"),
    ] = None


@dataclass(frozen=True)
class TrainableConfig:
    """Which weights of the encoder change."""

    what: Annotated[
        Literal["lora", "stages", "all"],
        Setting("lora: low-rank adapters; stages: from `from_stage` on; all: every weight"),
    ] = "lora"
    from_stage: Annotated[int, Setting("for stages: the first one that trains", at_least=0)] = 0
    rank: Annotated[int, Setting("for lora: columns of an adapter", at_least=1)] = 8
    alpha: Annotated[float, Setting("for lora: adapters count alpha / rank times", above=0)] = 16.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the embeddings are trained for."""

    kind: Annotated[
        Literal["contrastive", "mean-shifted", "groups", "one-class", "distill"],
        Setting(
            "contrastive: two views of a loop agree; mean-shifted: the same around the center of "
            "all; groups: ArcFace over folders; one-class: Deep SVDD; distill: another encoder"
        ),
    ] = "contrastive"
    temperature: Annotated[float, Setting("of the contrastive kinds", above=0)] = 0.2
    projection: Annotated[
        int, Setting("width of the head that the contrastive loss sees; 0: none", at_least=0)
    ] = 0
    margin: Annotated[float, Setting("for groups: in radians", at_least=0, below=1.5)] = 0.3
    scale: Annotated[float, Setting("for groups: of the cosines", above=0)] = 16.0
    sub_centers: Annotated[int, Setting("for groups: centers of each", at_least=1)] = 3
    teacher: Annotated[str, Setting("for distill: name or folder of the encoder to follow")] = ""
    anchor: Annotated[
        float, Setting("weight of the squared distance to the weights at the start", at_least=0)
    ] = 0.0


@dataclass(frozen=True)
class AugmentConfig:
    """How the views of a loop differ; all of it happens on the device but pitch and time."""

    gain_db: Annotated[float, Setting("louder or quieter by at most", at_least=0)] = 6.0
    tilt_db: Annotated[float, Setting("highs against lows, at most", at_least=0)] = 3.0
    floor_db: Annotated[
        float, Setting("loudest added noise floor; -100: none", at_least=-100, at_most=0)
    ] = -80.0
    rotate: Annotated[bool, Setting("loops begin anywhere in their period")] = True
    mix_db: Annotated[
        float,
        Setting("loudest other loop that is mixed in; -100: none", at_least=-100, at_most=0),
    ] = -100.0
    time_stripe: Annotated[
        int, Setting("mel frames that a hidden stretch of time has at most", at_least=0)
    ] = 64
    band_stripe: Annotated[
        int, Setting("mel bands that a hidden stretch of them has at most", at_least=0)
    ] = 8
    pitch_cents: Annotated[
        float, Setting("transposed by at most; on the host, needs the extra [eval]", at_least=0)
    ] = 0.0
    stretch_percent: Annotated[
        float, Setting("faster by at most; on the host, needs the extra [eval]", at_least=0)
    ] = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, and how a step is computed."""

    steps: Annotated[int, Setting("updates of the weights", at_least=1)] = 500
    batch_size: Annotated[int, Setting("loops per step, over all devices", at_least=2)] = 32
    accumulate: Annotated[
        int, Setting("parts of a batch that are computed one after the other", at_least=1)
    ] = 1
    learning_rate: Annotated[float, Setting("after the warmup", above=0)] = 3e-4
    warmup_steps: Annotated[int, Setting("of linear rise", at_least=0)] = 20
    decay_steps: Annotated[
        int, Setting("of cosine decay at the end; 0: all after the warmup", at_least=0)
    ] = 0
    weight_decay: Annotated[float, Setting("of kernels", at_least=0)] = 0.05
    clip_norm: Annotated[float, Setting("largest norm of a gradient", above=0)] = 1.0
    ema: Annotated[
        float,
        Setting("decay of the weights' average, less at first; 0: none", at_least=0, below=1),
    ] = 0.99
    remat: Annotated[
        bool, Setting("recompute blocks in the backward pass: less memory, a third more work")
    ] = False


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning, from loops to an encoder folder."""

    name: Annotated[FileName, Setting("the folder and the new encoder are called so")]
    data: Annotated[LoopsConfig, Setting("loops")] = field(default_factory=LoopsConfig)
    embed: Annotated[EmbedConfig, Setting("the encoder to start from, and how audio enters it")] = (
        field(default_factory=EmbedConfig)
    )
    trainable: Annotated[TrainableConfig, Setting("weights that change")] = field(
        default_factory=TrainableConfig
    )
    objective: Annotated[ObjectiveConfig, Setting("the loss")] = field(
        default_factory=ObjectiveConfig
    )
    augment: Annotated[AugmentConfig, Setting("views")] = field(default_factory=AugmentConfig)
    optimizer: Annotated[OptimizerConfig, Setting("steps")] = field(default_factory=OptimizerConfig)
    seed: Annotated[Seed, Setting("of the order, the views and new weights")] = 0
    input_statistics: Annotated[
        Literal["parent", "corpus"],
        Setting("of the mel bands: the parent's, or measured anew, for training from scratch"),
    ] = "parent"
    every_steps: Annotated[
        int,
        Setting("steps between checkpoints, each tried on the held-out loops", at_least=1),
    ] = 50
    min_spread: Annotated[
        float,
        Setting("stop when embeddings spread less than this fraction of the start", at_least=0),
    ] = 0.05
    detectors: Annotated[
        tuple[DetectorConfig, ...], Setting("heads of the tables before and after; none: no tables")
    ] = (
        DetectorConfig("knn", "knn"),
        DetectorConfig("pca", "pca"),
    )
    seeds: Annotated[
        tuple[Seed, ...], Setting("one fit each, where a head is random", filled=True)
    ] = (0,)


def read_finetuning(
    path: str | Path, overrides: tuple[str, ...] | list[str] = ()
) -> FinetuneConfig:
    """Reads a fine-tuning from YAML and applies `a.b=c` overrides; see `read_experiment`.

    Raises:
        UserError: unreadable file, unknown key, wrong type, or settings that contradict each other.
    """
    config = read_config(FinetuneConfig, path, overrides)
    check_finetuning(config)
    return config


def check_finetuning(config: FinetuneConfig) -> None:
    """Refuses what no single setting shows.

    Raises:
        UserError: names the settings.
    """
    optimizer = config.optimizer
    if not config.data.sources:
        raise UserError("data.sources: name the loops to train on")
    if optimizer.batch_size % optimizer.accumulate:
        raise UserError(
            f"optimizer.accumulate: {optimizer.accumulate} parts do not divide a batch of "
            f"{optimizer.batch_size}"
        )
    if optimizer.warmup_steps + optimizer.decay_steps > optimizer.steps:
        raise UserError(
            f"optimizer: {optimizer.warmup_steps} warmup_steps and {optimizer.decay_steps} "
            f"decay_steps do not fit into {optimizer.steps} steps"
        )
    if (config.objective.kind == "distill") != bool(config.objective.teacher):
        raise UserError("objective.teacher: name the encoder to follow, for kind distill alone")
    if config.data.group_column is not None and config.data.group_depth:
        raise UserError("data.group_column: its values have no folders; leave data.group_depth out")
    if config.embed.crops != "deterministic":
        raise UserError("embed.crops: training crops long clips at random anyway; leave it out")
