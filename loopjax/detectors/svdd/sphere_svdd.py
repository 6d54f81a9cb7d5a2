"""Many-sphere Deep SVDD as a detector: distance to the nearest centers, in local units."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.base import Detector
from loopjax.detectors.knn import RADIUS_FLOOR
from loopjax.detectors.known_rows import KnownRows
from loopjax.detectors.nearest import HIGHEST, NearestRows, local_radii
from loopjax.detectors.rows import (
    DataError,
    RowBlocks,
    iter_blocks,
    len_rows,
    places_among,
    score_in_blocks,
    take_rows,
)
from loopjax.detectors.spectrum import compute_spectrum, double_precision
from loopjax.detectors.svdd.spheres import ResidualMap, SphereRecipe, apply_map, train_maps
from loopjax.errors import ModelCheckError, ParameterError
from loopjax.training.checkpoints import Checkpoints

_BLOCK_ROWS = 4096


class SphereSVDD(Detector):
    """Deep SVDD with one sphere per training row; score = mean scaled distance to the nearest ones.

    One sphere for everything calls tight groups of anomalies normal where the normal loops scatter
    widely. Here rows are standardized and turned onto their principal axes, every row (or
    `max_centers` of them) becomes a center with a radius of its own, and a residual map that starts
    as the identity is trained to draw every ball onto its center. What lies outside the span of the
    training rows passes through unchanged. The score is the mean of the `n_neighbors` smallest
    distances from the mapped row to a center, each divided by its radius to `density_exponent`.

    Untrained (`steps=0`) this is `LocalKNN`; most of the gain over one sphere is that geometry.

    Args:
        n_neighbors: spheres that count for a score, and neighbors that set a radius. In a corpus
            with several percent of anomalies of one kind, 10 keeps them from vouching for each
            other; in a clean one 3 is better.
        density_exponent: 0 plain distance, 1 ratio to the local distance.
        steps: training steps; 0 leaves the map the identity.
        batch_size: centers per step, where there are more.
        learning_rate, weight_decay: AdamW; the rate falls to 0 on a cosine.
        hidden_width: units of the map's hidden layer.
        max_centers: spheres at most, drawn without replacement; bounds time and memory.
        contamination: fraction of training rows above `threshold_`; "auto" is 0.05.
        random_state: seed of centers, first layer, noise and batches.
        checkpoint_dir: folder from which a killed `fit` goes on.

    Fitted: `mean_`, `scale_` [D]; `axes_` [D, K], `norm_`; `centers_` float32 [M, K], `radii_` [M];
    `map_` {"linear", "kernel", "bias", "output"}; `losses_` [steps].
    """

    kind: ClassVar[str] = "sphere-svdd"
    depends_on_seed: ClassVar[bool] = True
    run_time_params: ClassVar[tuple[str, ...]] = ("checkpoint_dir",)

    mean_: np.ndarray
    scale_: np.ndarray
    axes_: np.ndarray
    norm_: float
    centers_: np.ndarray
    radii_: np.ndarray
    map_: dict[str, np.ndarray]
    losses_: np.ndarray
    _kept: np.ndarray
    _placed: tuple[NearestRows, KnownRows] | None = None

    def __init__(
        self,
        n_neighbors: int = 3,
        density_exponent: float = 0.9,
        steps: int = 100,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        hidden_width: int = 256,
        max_centers: int = 4096,
        contamination: float | Literal["auto"] = 0.05,
        random_state: int | None = 0,
        checkpoint_dir: str | Path | None = None,
    ):
        self.n_neighbors = n_neighbors
        self.density_exponent = density_exponent
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.hidden_width = hidden_width
        self.max_centers = max_centers
        self.contamination = contamination
        self.random_state = random_state
        self.checkpoint_dir = checkpoint_dir

    def latents(self, X: Any) -> np.ndarray:
        """Where rows [N, D] lie among the centers; float32 [N, K]."""
        rows = self._validate(X, reset=False)
        return np.concatenate([points for points, _ in self._mapped(rows)])

    def check_params(self) -> None:
        """Check every hyper-parameter; see `Detector.check_params`."""
        super().check_params()
        least = dict.fromkeys(("n_neighbors", "batch_size", "hidden_width", "max_centers"), 1)
        for name, limit in {**least, "steps": 0, "weight_decay": 0}.items():
            if getattr(self, name) < limit:
                raise ParameterError(
                    f"{name} must be at least {limit}; got {getattr(self, name)!r}"
                )
        if not 0.0 <= self.density_exponent <= 1.0:
            raise ParameterError(
                f"density_exponent must lie in [0, 1]; got {self.density_exponent!r}"
            )
        if not self.learning_rate > 0:
            raise ParameterError(f"learning_rate must be positive; got {self.learning_rate!r}")

    def _learn(self, rows: Any) -> None:
        seed = self._seed()
        self._place_spheres(rows, seed)
        recipe = SphereRecipe(
            self.steps, self.batch_size, self.learning_rate, self.weight_decay, self.hidden_width
        )
        checkpoints = None
        if self.checkpoint_dir is not None:
            params = {k: v for k, v in self.get_params().items() if k != "checkpoint_dir"}
            described = {"params": params, "sum": float(np.sum(self.centers_, dtype=np.float64))}
            checkpoints = Checkpoints(self.checkpoint_dir, described)
        maps, losses = train_maps(
            [self.centers_], [self.radii_], [seed], recipe, checkpoints=checkpoints
        )
        self.map_ = {name: np.asarray(array) for name, array in maps[0]._asdict().items()}
        self.losses_ = losses[0]
        if not np.isfinite(self.losses_).all():
            raise ModelCheckError("SphereSVDD diverged: not finite; lower the learning rate")

    def _training_scores(self, rows: Any, numbers: np.ndarray) -> np.ndarray:
        return self._scores(rows, places_among(self._kept, numbers))

    def _place_spheres(self, rows: np.ndarray | RowBlocks, seed: int) -> None:
        """Sets what is fixed before training."""
        total = len_rows(rows)
        found = compute_spectrum(rows, standardize=True)
        if found.total_variance <= 0.0:
            raise DataError("all rows are identical: there is no variance to learn from")
        kept = np.arange(total)
        if self.max_centers < total:
            rng = np.random.default_rng([seed, 3])
            kept = np.sort(rng.choice(total, self.max_centers, replace=False))
        if len(kept) <= self.n_neighbors:
            raise DataError(
                f"n_neighbors={self.n_neighbors} needs more than {self.n_neighbors} centers; "
                f"got n_samples = {len(kept)}"
            )
        inside = found.eigenvalues > found.eigenvalues[0] * 1e-12
        self.mean_, self.scale_ = found.mean, found.scale
        self.axes_ = np.ascontiguousarray(found.axes[:, inside])
        self.norm_ = float(np.sqrt(found.total_variance))
        self.centers_ = self._project(take_rows(rows, kept))[0]
        near, _ = NearestRows(self.centers_).search(
            self.centers_, self.n_neighbors, np.arange(len(kept))
        )
        self.radii_ = local_radii(near, RADIUS_FLOOR, 1.0)
        if not self.radii_.min() > 0:
            raise DataError("more than half of the rows are copies of others; drop the copies")
        self._kept = kept

    def _score(self, rows: np.ndarray) -> np.ndarray:
        return self._scores(rows, self._spheres()[1].find(self._project(rows)[0]))

    def _spheres(self) -> tuple[NearestRows, KnownRows]:
        """The centers to search, which stay on the device, and to know again."""
        if self._placed is None or self._placed[0].rows is not self.centers_:
            nearest = NearestRows(self.centers_, self.radii_**self.density_exponent)
            self._placed = nearest, KnownRows.of(self.centers_)
        return self._placed

    def _scores(self, rows: np.ndarray | RowBlocks, own: np.ndarray) -> np.ndarray:
        """Scores [N]; `own[i]` is the center that row i must not find, -1 for none."""
        spheres, scores, start = self._spheres()[0], [], 0
        for points, rest in self._mapped(rows):
            mine = own[start : start + len(points)]
            found, _ = spheres.search(points, self.n_neighbors, mine, rest)
            scores.append(found.mean(axis=1))
            start += len(points)
        return np.concatenate(scores)

    def _mapped(self, rows: np.ndarray | RowBlocks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mapped points float32 [B, K] and squared distances from the span [B], block by block."""
        params = ResidualMap(**{name: jnp.asarray(array) for name, array in self.map_.items()})
        for block in iter_blocks(rows, _BLOCK_ROWS):
            points, rest = self._project(block)
            yield score_in_blocks(lambda part: _apply(params, part), points), rest

    def _project(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [B, D] along the axes, float32 [B, K], and the squared length of the rest [B]."""
        with double_precision():
            model = [jnp.asarray(a) for a in (self.mean_, self.scale_, self.axes_)]
            both = score_in_blocks(lambda part: _along_axes(part, *model, self.norm_), rows)
        rest = both[:, -1] if self.axes_.shape[1] < len(self.mean_) else np.zeros(len(both))
        return both[:, :-1].astype(np.float32), np.maximum(rest, 0.0)


@jax.jit
def _along_axes(rows, mean, scale, axes, norm):
    v = (jnp.asarray(rows, mean.dtype) - mean[None, :]) / scale[None, :] / norm
    inside = jnp.matmul(v, axes, precision=HIGHEST)
    rest = jnp.sum(v**2, axis=1) - jnp.sum(inside**2, axis=1)
    return jnp.concatenate([inside, rest[:, None]], axis=1)


@jax.jit
def _apply(params, points):
    with jax.default_matmul_precision("highest"):
        return apply_map(params, points)
