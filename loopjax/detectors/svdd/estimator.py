"""Deep SVDD: an encoder trained to map normal rows close to a center; far away is odd.

Two stages as in the paper (section III-C, reference `models/deepSVDD.py`): an autoencoder learns to
reconstruct, then its encoder is trained towards the mean of its own outputs. DIFFERENCES.md lists
where the default recipe departs from the reference; `compat="reference"` follows it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from loopjax.detectors.base import Detector, RowBlocks
from loopjax.detectors.svdd.encoding import check_encoder_arrays, encode_rows
from loopjax.detectors.svdd.fit import fit_heads, train_heads, train_streamed
from loopjax.detectors.svdd.network import HIDDEN_DIMS, NetworkConfig
from loopjax.errors import ModelCheckError, UserError

# Numbers of the reference's configs/base.yaml, for `DeepSVDD(**REFERENCE)`.
REFERENCE: dict[str, Any] = {
    "compat": "reference",
    "pretrain_epochs": 1000,
    "epochs": 1000,
    "pretrain_learning_rate": 1e-5,
    "learning_rate": 1e-5,
    "min_learning_rate": 5e-6,
    "schedule_epochs": 1000,
    "weight_decay": 1e-5,
}


class DeepSVDD(Detector):
    """One-class network on embeddings; score = mean over latent dimensions of (z - c)^2.

    The default recipe trains gently: on most of the paper's labeled folders more training makes
    the head worse (DIFFERENCES.md, "Detectors", has the table and the exception).

    Args:
        network: "standard", or "residual", whose encoder outputs are added to the decoder's.
        hidden_dims: encoder widths, or the name of a preset, "exp1" or "exp2_deeper".
        objective: "one-class", or "soft-boundary" with radius and `nu` (Ruff et al. 2018).
        nu: share of training rows that may lie outside the soft boundary.
        warmup_epochs: epochs before the soft boundary's radius is first set.
        batch_norm, bn_shift, bias, activation, dropout: see `NetworkConfig`; `bn_shift=False` with
            `bias=False` removes the constant map, the trivial solution.
        bn_scale: BatchNorm's scale before training (1 under `compat`). Once its statistics are
            warm, a unit has variance `bn_scale`^2: 0.1 keeps the blocks in their nearly linear
            range, where distances between rows survive the random weights; with 1, warm statistics
            cost three AUROC points on the paper's labeled folders before any training.
        pretrain_epochs: limit of stage 1; 0 keeps the random encoder.
        epochs: limit of stage 2; 0 scores with the pretrained encoder.
        batch_size: rows per step.
        pretrain_learning_rate, learning_rate: AdamW, at the first epoch of stage 1 and 2.
        min_learning_rate: where the cosine schedule, stepped once per epoch, ends.
        schedule_epochs: length of the schedule; None for the stage's limit.
        weight_decay: AdamW, on every parameter.
        patience: epochs without a lower validation loss before a stage stops.
        validation_fraction: rows held out for that; 0 runs every stage to its limit.
        bn_warmup_passes: passes that settle the BatchNorm statistics before stage 1.
        precision: "float32" or "bfloat16" (layers only).
        compat: "reference" for the reference's procedure: its row-duplicating shuffle, no BatchNorm
            warm-up, BatchNorm scale 1, center and stage 2 from the last weights instead of the
            best, threshold from the training part; "reference-true-split" is the same with a real
            permutation. The numbers that go with it are in `REFERENCE`.
        data_parallel: spread every batch over all devices.
        contamination: share of training rows above `threshold_`.
        random_state: seed of split, initialization, batches and dropout.
        checkpoint_dir: folder from which a killed `fit` resumes.
        checkpoint_every_epochs: how often it is written.
        on_epoch: called as on_epoch(stage, epoch, metrics) with stage "pretrain" or "one-class".

    Fitted: `encoder_`, arrays by name, "layers/0/linear/kernel" [n_in, n_out] and so on; `center_`
    [Z]; `radius_` (soft boundary, in units of sqrt(score)); `history_` {stage: {metric: list per
    epoch}}; `best_epochs_` {stage: epoch}; `train_rows_`, the numbers of the rows that were trained
    on (the others stopped it); `latent_shrinkage_`, the latents' variance after stage 2 over that
    before it.
    """

    kind: ClassVar[str] = "deep-svdd"
    run_time_params: ClassVar[tuple[str, ...]] = (
        "checkpoint_dir",
        "checkpoint_every_epochs",
        "on_epoch",
    )
    depends_on_seed: ClassVar[bool] = True
    _min_rows: ClassVar[int] = 5

    encoder_: dict[str, np.ndarray]
    center_: np.ndarray
    radius_: float | None
    history_: dict[str, dict[str, list[float | None]]]
    best_epochs_: dict[str, int]
    train_rows_: np.ndarray
    latent_shrinkage_: float

    def __init__(
        self,
        network: Literal["standard", "residual"] = "standard",
        hidden_dims: tuple[int, ...] | str = (512, 256, 128),
        objective: Literal["one-class", "soft-boundary"] = "one-class",
        nu: float = 0.1,
        warmup_epochs: int = 10,
        batch_norm: bool = True,
        bn_shift: bool = True,
        bn_scale: float = 0.1,
        bias: bool = False,
        activation: Literal["elu", "relu", "leaky_relu"] = "elu",
        dropout: float = 0.2,
        pretrain_epochs: int = 10,
        epochs: int = 30,
        batch_size: int = 32,
        pretrain_learning_rate: float = 1e-5,
        learning_rate: float = 3e-5,
        min_learning_rate: float = 5e-6,
        schedule_epochs: int | None = None,
        weight_decay: float = 1e-5,
        patience: int = 10,
        validation_fraction: float = 0.2,
        bn_warmup_passes: int = 5,
        precision: Literal["float32", "bfloat16"] = "float32",
        compat: Literal["reference", "reference-true-split"] | None = None,
        data_parallel: bool = False,
        contamination: float = 0.05,
        random_state: int = 0,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every_epochs: int = 25,
        on_epoch: Callable[[str, int, dict[str, float]], None] | None = None,
    ):
        self.network = network
        self.hidden_dims = hidden_dims
        self.objective = objective
        self.nu = nu
        self.warmup_epochs = warmup_epochs
        self.batch_norm = batch_norm
        self.bn_shift = bn_shift
        self.bn_scale = bn_scale
        self.bias = bias
        self.activation = activation
        self.dropout = dropout
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.pretrain_learning_rate = pretrain_learning_rate
        self.learning_rate = learning_rate
        self.min_learning_rate = min_learning_rate
        self.schedule_epochs = schedule_epochs
        self.weight_decay = weight_decay
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.bn_warmup_passes = bn_warmup_passes
        self.precision = precision
        self.compat = compat
        self.data_parallel = data_parallel
        self.contamination = contamination
        self.random_state = random_state
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every_epochs = checkpoint_every_epochs
        self.on_epoch = on_epoch

    @classmethod
    def from_arrays(
        cls,
        encoder: Mapping[str, np.ndarray],
        center: np.ndarray,
        training_rows: Any | None = None,
        threshold: float | None = None,
        **params: Any,
    ) -> Self:
        """A detector around weights trained elsewhere, such as the reference's checkpoints.

        Args:
            encoder: as in `encoder_`, {"layers/0/linear/kernel": ...}. Kernels are [n_in, n_out]
                (PyTorch stores the transpose); BatchNorm has "scale", "bias", "mean", "var";
                linear biases "layers/0/linear/bias" where `bias=True`.
            center: [Z].
            training_rows: [N, D], from which `decision_scores_` and `threshold_` are computed.
            threshold: used as it is when given, for example the reference's published one.
            params: hyper-parameters; `hidden_dims`, `batch_norm`, `bn_shift` and `bias` are read
                off the arrays.

        Raises:
            UserError: arrays are missing, unknown or of the wrong shape; or neither rows nor a
                threshold are given.
        """
        arrays = {k: np.asarray(v, np.float32) for k, v in encoder.items()}
        kernels = [k for k in arrays if k.endswith("/linear/kernel")]
        if not kernels or "layers/0/linear/kernel" not in arrays:
            raise UserError("encoder arrays must include layers/0/linear/kernel, layers/1/...")
        widths = [arrays[f"layers/{i}/linear/kernel"].shape[1] for i in range(len(kernels))]
        self = cls(**{
            "hidden_dims": tuple(int(w) for w in widths),
            "batch_norm": any(k.endswith("/bn/scale") for k in arrays),
            "bn_shift": any(k.endswith("/bn/bias") for k in arrays),
            "bias": any(k.endswith("/linear/bias") for k in arrays),
            **params,
        })  # fmt: skip
        self.n_features_in_ = int(arrays["layers/0/linear/kernel"].shape[0])
        self._check_params()
        check_encoder_arrays(self.network_config(), arrays)
        self.encoder_ = arrays
        self.center_ = np.asarray(center, np.float32)
        if self.center_.shape != (widths[-1],):
            raise UserError(f"center has shape {self.center_.shape}; expected ({widths[-1]},)")
        self.history_, self.best_epochs_, self.train_rows_ = {}, {}, np.zeros(0, np.int64)
        self.radius_, self.latent_shrinkage_ = None, 1.0
        if training_rows is not None:
            self.decision_scores_ = self._score_all(self._validate(training_rows, reset=False))
        elif threshold is not None:
            self.decision_scores_ = np.zeros(0)
        else:
            raise UserError("from_arrays needs training_rows or a threshold")
        computed = threshold is None
        self.threshold_ = self._threshold_from(self.decision_scores_) if computed else threshold
        return self

    def fit_seeds(self, X: Any, seeds: Sequence[int]) -> list["DeepSVDD"]:
        """Detectors that differ only in `random_state`, trained together."""
        rows = self._validate(X, reset=True)
        heads = [type(self)(**{**self.get_params(), "random_state": seed}) for seed in seeds]
        return fit_heads(heads, rows)

    def latents(self, X: Any) -> np.ndarray:
        """The encoder's outputs for rows [N, D]; float32 [N, Z]."""
        return self._encode(self._validate(X, reset=False))

    def network_config(self) -> NetworkConfig:
        """The network for `n_features_in_` features."""
        return self._network(self.n_features_in_)

    def _network(self, n_features: int) -> NetworkConfig:
        dims = self.hidden_dims
        if isinstance(dims, str):
            if dims not in HIDDEN_DIMS:
                raise UserError(f"hidden_dims: widths or {', '.join(HIDDEN_DIMS)}; got {dims!r}")
            dims = HIDDEN_DIMS[dims]
        return NetworkConfig(
            n_features=n_features,
            hidden_dims=tuple(int(width) for width in dims),
            residual=self.network == "residual",
            batch_norm=self.batch_norm,
            shift=self.bn_shift,
            bias=self.bias,
            activation=self.activation,
            dropout=float(self.dropout),
            bfloat16=self.precision == "bfloat16",
        )

    def _check_params(self) -> None:
        super()._check_params()
        choices = {
            "network": ("standard", "residual"),
            "objective": ("one-class", "soft-boundary"),
            "precision": ("float32", "bfloat16"),
            "compat": (None, "reference", "reference-true-split"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {allowed}; got {getattr(self, name)!r}")
        for name in ("batch_size", "patience", "checkpoint_every_epochs"):
            if int(getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        for name in ("pretrain_epochs", "epochs", "bn_warmup_passes", "warmup_epochs"):
            if int(getattr(self, name)) < 0:
                raise UserError(f"{name} must not be negative; got {getattr(self, name)!r}")
        for name in ("pretrain_learning_rate", "learning_rate"):
            if not getattr(self, name) > 0.0:
                raise UserError(f"{name} must be positive; got {getattr(self, name)!r}")
        for name in ("min_learning_rate", "weight_decay"):
            if not getattr(self, name) >= 0.0:
                raise UserError(f"{name} must not be negative; got {getattr(self, name)!r}")
        self._network(n_features=1)  # refuses impossible widths, dropout and activations
        if self.batch_norm and self.batch_size < 2:
            raise UserError("batch_size must be at least 2 with batch_norm")
        if not 0.0 <= self.validation_fraction < 0.9:
            raise UserError(
                f"validation_fraction must lie in [0, 0.9); got {self.validation_fraction!r}"
            )
        if not 0.0 < self.nu < 1.0:
            raise UserError(f"nu must lie in (0, 1); got {self.nu!r}")
        if not self.bn_scale > 0.0:
            raise UserError(f"bn_scale must be positive; got {self.bn_scale!r}")

    def _fit(self, rows: Any) -> np.ndarray:
        if isinstance(rows, RowBlocks):
            train_streamed(self, rows)
        else:
            train_heads([self], rows, [np.arange(len(rows))])
        return self._finish(rows)

    def _finish(self, rows: Any) -> np.ndarray:
        """Training scores of [N, D] after `train_heads`, refused when the head collapsed."""
        scores = self._score_all(rows)
        self._check_spread(scores)
        return scores

    def _threshold_from(self, scores: np.ndarray) -> float:
        rows = slice(None) if self.compat is None else self.train_rows_
        return super()._threshold_from(scores[rows])

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return np.mean((self._encode(rows).astype(np.float64) - self.center_) ** 2, axis=1)

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        return encode_rows(self.network_config(), self.encoder_, rows)

    def _check_spread(self, scores: np.ndarray) -> None:
        """Raise `ModelCheckError` when the scores no longer tell rows apart.

        Hypersphere collapse (Ruff et al. 2018, section 3.3) is silent: every row is mapped to the
        center. Checked are finite scores, a mean score above 1e-12, scores that differ by more than
        1e-4 of their mean, and latents that keep more than 1e-5 of their variance in stage 2 (sound
        trainings of the reference kept 7e-4 and more; a constant map keeps float32's rounding).
        """
        advice = "train less, or set bn_shift=False and bias=False"
        if min(self.best_epochs_.values(), default=0) < 0 or not np.all(np.isfinite(scores)):
            raise ModelCheckError("Deep SVDD diverged: not finite; lower the learning rates")
        if scores.mean() < 1e-12:
            raise ModelCheckError(f"Deep SVDD collapsed: mean score {scores.mean():.1e}; {advice}")
        if self.latent_shrinkage_ < 1e-5:
            raise ModelCheckError(
                "Deep SVDD collapsed: the latents kept "
                f"{self.latent_shrinkage_:.1e} of their variance; {advice}"
            )
        if scores.std() < 1e-4 * scores.mean():
            spread = scores.std() / scores.mean()
            raise ModelCheckError(
                f"Deep SVDD collapsed: all scores lie within {spread:.1e} of their mean; {advice}"
            )
