"""Deep SVDD: an encoder trained to map normal rows close to a center; far away is anomalous.

Two stages as in the paper (section III-C, reference `models/deepSVDD.py`): an autoencoder learns to
reconstruct, then its encoder is trained towards the mean of its own outputs. DIFFERENCES.md lists
where the default recipe departs from the reference; `compat="reference"` follows it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.rows import RowBlocks, len_rows
from loopjax.detectors.svdd.fit import (
    BATCH_ROWS,
    STEPS_PER_EPOCH,
    FittedHead,
    HeadConfig,
    RunOptions,
    TrainingConfig,
    check_spread,
    train_heads,
    train_streamed,
)
from loopjax.detectors.svdd.network import (
    HIDDEN_DIMS,
    NetworkConfig,
    check_encoder_arrays,
    encode_rows,
)
from loopjax.errors import ParameterError, UserError

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
        nu: fraction of training rows that may lie outside the soft boundary.
        warmup_epochs: epochs before the soft boundary's radius is first set.
        batch_norm, bn_shift, bias, activation, dropout: see `NetworkConfig`; `bn_shift=False` with
            `bias=False` removes the constant map, the trivial solution.
        bn_scale: BatchNorm's scale before training (1 under `compat`). Once its statistics are
            warm, a unit has variance `bn_scale`^2: 0.1 keeps the blocks in their nearly linear
            range, where distances between rows survive the random weights; with 1, warm statistics
            cost three AUROC points on the paper's labeled folders before any training.
        pretrain_epochs: limit of stage 1; 0 keeps the random encoder.
        epochs: limit of stage 2; 0 scores with the pretrained encoder.
        batch_size: rows per step, in epochs that see every training row. "auto" makes an epoch five
            batches of 32 rows whatever the size of the corpus, small ones giving each row several
            times; under `compat` it is 32. With epochs that grow with the corpus, or with batches
            that do, a head of 20,000 rows trains further than one of 200, or collapses.
        pretrain_learning_rate, learning_rate: AdamW, at the first epoch of stage 1 and 2.
        min_learning_rate: where the cosine schedule, stepped once per epoch, ends.
        schedule_epochs: length of the schedule; None for the stage's limit.
        weight_decay: AdamW, on every parameter.
        patience: epochs without a lower validation loss before a stage stops.
        validation_fraction: rows held out for that; 0 runs every stage to its limit.
        bn_warmup_passes: passes that settle the BatchNorm statistics before stage 1.
        precision: "float32" or "bfloat16" (layers only).
        compat: "reference" for the reference's procedure: its row-duplicating shuffle, no BatchNorm
            warmup, BatchNorm scale 1, center and stage 2 from the last weights instead of the
            best, threshold from the training part; "reference-true-split" is the same with a real
            permutation. The numbers that go with it are in `REFERENCE`.
        data_parallel: spread every batch over all devices of this process.
        contamination: fraction of training rows above `threshold_`; "auto" is 0.05.
        random_state: seed of split, initialization, batches and dropout.
        checkpoint_dir: folder from which a killed `fit` resumes.
        checkpoint_every_epochs: how often it is written.
        on_epoch: called as on_epoch(stage, epoch, metrics) with stage "pretrain" or "one-class";
            a `fit` that resumes tells the epochs before, too.

    Fitted: `encoder_`, arrays by name, "layers/0/linear/kernel" [n_in, n_out] and so on; `center_`
    [Z]; `radius_` (soft boundary, in units of sqrt(score)); `history_` {stage: {metric: list per
    epoch}}; `best_epochs_` {stage: epoch}; `train_rows_`, the numbers of the rows that were trained
    on (others stopped it, or were more than its steps can see); `latent_shrinkage_`, the latents'
    variance after stage 2 over that before it.
    """

    kind: ClassVar[str] = "deep-svdd"
    run_time_params: ClassVar[tuple[str, ...]] = (
        "checkpoint_dir",
        "checkpoint_every_epochs",
        "on_epoch",
    )
    depends_on_seed: ClassVar[bool] = True
    min_rows: ClassVar[int] = 5

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
        batch_size: int | Literal["auto"] = "auto",
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
        contamination: float | Literal["auto"] = 0.05,
        random_state: int | None = 0,
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
        self.check_params()
        self.n_features_in_ = int(arrays["layers/0/linear/kernel"].shape[0])
        check_encoder_arrays(self.network_config(self.n_features_in_), arrays)
        center = np.asarray(center, np.float32)
        if center.shape != (widths[-1],):
            raise UserError(f"center has shape {center.shape}; expected ({widths[-1]},)")
        if training_rows is None and threshold is None:
            raise UserError("from_arrays needs training_rows or a threshold")
        nobody = np.zeros(0, np.int64)
        self._take(FittedHead(arrays, center, None, {}, {}, nobody, latent_shrinkage=1.0))
        scores = np.zeros(0)
        if training_rows is not None:
            scores = self._score_all(self._validate(training_rows, reset=False))
        if threshold is None:
            return self._keep_scores(scores)
        self.decision_scores_, self.threshold_ = scores, threshold
        return self

    def adopt(self, fitted: FittedHead, X: Any) -> Self:
        """Become the head that `train_together` trained on rows [N, D]; what `fit` would give.

        Raises:
            ModelCheckError: the head collapsed.
        """
        self._validate(X, reset=True)
        self.origin_ = fitted.origin
        rows = self._validate(X, reset=False)
        self._take(fitted)
        return self._keep_scores(self._training_scores(rows, np.arange(len_rows(rows))))

    def latents(self, X: Any) -> np.ndarray:
        """The encoder's outputs for rows [N, D]; float32 [N, Z]."""
        return self._encode(self._validate(X, reset=False))

    def network_config(self, n_features: int) -> NetworkConfig:
        """The network for rows of `n_features` numbers."""
        dims = self.hidden_dims
        if isinstance(dims, str):
            if dims not in HIDDEN_DIMS:
                raise ParameterError(
                    f"hidden_dims: widths or {', '.join(HIDDEN_DIMS)}; got {dims!r}"
                )
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

    def training_config(self, n_features: int) -> TrainingConfig:
        """What `compat`, "auto" and the other parameters mean."""
        own = self.compat is None
        batch_size, steps = self.batch_size, None
        if isinstance(batch_size, str):
            batch_size, steps = BATCH_ROWS, STEPS_PER_EPOCH if own else None
        return TrainingConfig(
            network=self.network_config(n_features),
            batch_size=batch_size,
            steps_per_epoch=steps,
            pretrain_epochs=self.pretrain_epochs,
            epochs=self.epochs,
            schedule_epochs=self.schedule_epochs,
            patience=self.patience,
            validation_fraction=self.validation_fraction,
            bn_scale=self.bn_scale if own else 1.0,
            bn_warmup_passes=self.bn_warmup_passes if own else 0,
            soft_boundary=self.objective == "soft-boundary",
            warmup_epochs=self.warmup_epochs,
            reference_shuffle=self.compat == "reference",
            last_weights=not own,
            data_parallel=self.data_parallel,
        )

    def head_config(self) -> HeadConfig:
        """The parameters in which heads that train together may differ."""
        return HeadConfig(
            seed=self._seed(),
            pretrain_learning_rate=self.pretrain_learning_rate,
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            weight_decay=self.weight_decay,
            nu=self.nu,
        )

    def run_options(self) -> RunOptions:
        """Progress and checkpoints."""
        folder = None if self.checkpoint_dir is None else Path(self.checkpoint_dir)
        return RunOptions(self.on_epoch, folder, self.checkpoint_every_epochs)

    @property
    def streams(self) -> bool:
        """Whether it can be fitted on `RowBlocks`; see `train_streamed`."""
        whole = self.objective == "soft-boundary" or self.compat == "reference"
        return not (whole or self.data_parallel)

    def check_params(self) -> None:
        """Check every hyper-parameter; see `Detector.check_params`."""
        if str(self.network) == "spheres":
            raise ParameterError(
                "network='spheres' is a detector of its own, which shares no parameter with the "
                'autoencoders: SphereSVDD (kind "sphere-svdd")'
            )
        super().check_params()
        least = {
            **dict.fromkeys(("patience", "checkpoint_every_epochs"), 1),
            **dict.fromkeys(("pretrain_epochs", "epochs", "bn_warmup_passes"), 0),
            **dict.fromkeys(("warmup_epochs", "weight_decay", "min_learning_rate"), 0),
        }
        if self.batch_size != "auto":
            least["batch_size"] = 2 if self.batch_norm else 1
        if self.schedule_epochs is not None:
            least["schedule_epochs"] = 1
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ParameterError(
                    f"{name} must be at least {limit}; got {getattr(self, name)!r}"
                )
        for name in ("bn_scale", "pretrain_learning_rate", "learning_rate"):
            if not getattr(self, name) > 0.0:
                raise ParameterError(f"{name} must be positive; got {getattr(self, name)!r}")
        if not 0.0 <= self.validation_fraction < 0.9:
            raise ParameterError(
                f"validation_fraction must lie in [0, 0.9); got {self.validation_fraction!r}"
            )
        if not 0.0 < self.nu < 1.0:
            raise ParameterError(f"nu must lie in (0, 1); got {self.nu!r}")
        self.network_config(n_features=1)  # refuses impossible widths and dropout

    def _learn(self, rows: np.ndarray | RowBlocks) -> None:
        config = self.training_config(self.n_features_in_)
        head, options = self.head_config(), self.run_options()
        if isinstance(rows, RowBlocks):
            fitted = train_streamed(config, head, rows, options)
        else:
            (fitted,) = train_heads(config, [head], rows, [np.arange(len(rows))], options)
        self._take(fitted)

    def _training_scores(self, rows: Any, numbers: np.ndarray) -> np.ndarray:
        """Scores of training rows, refused when the head collapsed."""
        scores = self._score_all(rows)
        check_spread(self.best_epochs_, self.latent_shrinkage_, scores)
        return scores

    def _take(self, fitted: FittedHead) -> None:
        self.encoder_, self.center_, self.radius_ = fitted.encoder, fitted.center, fitted.radius
        self.history_, self.best_epochs_ = fitted.history, fitted.best_epochs
        self.train_rows_, self.latent_shrinkage_ = fitted.train_rows, fitted.latent_shrinkage

    def _threshold_from(self, scores: np.ndarray) -> float:
        rows = slice(None) if self.compat is None else self.train_rows_
        return super()._threshold_from(scores[rows])

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return np.mean((self._encode(rows).astype(np.float64) - self.center_) ** 2, axis=1)

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        return encode_rows(self.network_config(self.n_features_in_), self.encoder_, rows)
