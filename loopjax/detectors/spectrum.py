"""Mean, scale and principal axes of a set of rows, from blocks of any number of rows."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.base import RowBlocks, iter_blocks, len_rows

BLOCK_ROWS = 8192
_COLUMN_BLOCKS = 4
HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Spectrum:
    """Principal axes of standardised or centred rows.

    Attributes:
        mean: [D]; scale: [D], ones where rows are only centred.
        eigenvalues: [K] variances (divisor n) along `axes`, descending.
        axes: [D, K] orthonormal columns.
        total_variance: trace of the covariance.
        fourth_moment: mean over rows of the squared squared length, for shrinkage.
        n_rows: how many rows were seen.
    """

    mean: np.ndarray
    scale: np.ndarray
    eigenvalues: np.ndarray
    axes: np.ndarray
    total_variance: float
    fourth_moment: float
    n_rows: int


def double_precision() -> AbstractContextManager[None]:
    """Scope in which arrays may be float64; float32 stays on TPUs, which have no float64 units."""
    return jax.enable_x64(jax.default_backend() != "tpu")


def compute_spectrum(
    rows: np.ndarray | RowBlocks, *, standardize: bool, rank: int | None = None, seed: int = 0
) -> Spectrum:
    """Principal axes of rows [N, D] in float64.

    Fewer rows than columns go through the N x N Gram matrix, otherwise the covariance is summed
    block by block and decomposed; with `rank`, only that many leading axes are found by subspace
    iteration from a random start (Halko et al. 2011), which never forms a D x D matrix.
    """
    with double_precision():
        if rank is not None:
            return _by_iteration(rows, standardize, rank, seed)
        if isinstance(rows, np.ndarray) and rows.shape[0] < rows.shape[1]:
            return _by_gram(rows, standardize)
        return _by_covariance(rows, standardize)


def _by_gram(rows: np.ndarray, standardize: bool) -> Spectrum:
    n = len(rows)
    padded, weights = _pad_rows(rows)
    mean, scale, values, axes, fourth = _gram_core(padded, weights, n, standardize=standardize)
    keep = n - 1
    values = np.maximum(np.asarray(values[:keep]), 0.0)
    return Spectrum(
        mean=np.asarray(mean),
        scale=np.asarray(scale),
        eigenvalues=values,
        axes=np.asarray(axes[:, :keep]),
        total_variance=float(values.sum()),
        fourth_moment=float(fourth),
        n_rows=n,
    )


@partial(jax.jit, static_argnames="standardize")
def _gram_core(rows, weights, n, *, standardize):
    x = jnp.asarray(rows, jnp.result_type(float))
    w = weights[:, None]
    mean = jnp.sum(x * w, axis=0) / n
    centred = (x - mean[None, :]) * w
    scale = _scale_of(jnp.sum(centred**2, axis=0) / n, mean, n, standardize)
    z = centred / scale[None, :]
    values, vectors = jnp.linalg.eigh(jnp.matmul(z, z.T, precision=HIGHEST) / n)
    values, vectors = values[::-1], vectors[:, ::-1]
    # Axes of vanishing variance are never used; the floor only keeps them finite.
    lengths = jnp.sqrt(jnp.maximum(values * n, jnp.finfo(x.dtype).tiny))
    axes = jnp.matmul(z.T, vectors, precision=HIGHEST) / lengths[None, :]
    fourth = jnp.sum(jnp.sum(z**2, axis=1) ** 2) / n
    return mean, scale, values, axes, fourth


def _by_covariance(rows: np.ndarray | RowBlocks, standardize: bool) -> Spectrum:
    n = len_rows(rows)
    mean, covariance = _mean_and_covariance(rows)
    scale = _scale_of(jnp.diag(covariance), mean, n, standardize)
    values, axes = _decompose(covariance / scale[None, :] / scale[:, None])
    fourth = _fourth_moment(rows, mean, scale)
    values = np.maximum(np.asarray(values), 0.0)
    return Spectrum(
        mean=np.asarray(mean),
        scale=np.asarray(scale),
        eigenvalues=values,
        axes=np.asarray(axes),
        total_variance=float(values.sum()),
        fourth_moment=fourth,
        n_rows=n,
    )


def _mean_and_covariance(rows):
    """Sums relative to the first block's mean, so that large offsets cancel before squaring."""
    n = len_rows(rows)
    shift = _first_mean(rows)
    total, products = jnp.zeros(len(shift)), jnp.zeros((len(shift), len(shift)))
    for block in iter_blocks(rows, BLOCK_ROWS):
        block_sum, block_products = _block_sums(*_pad_rows(block), shift)
        total, products = total + block_sum, products + block_products
    offset = total / n
    return shift + offset, products / n - offset[None, :] * offset[:, None]


@jax.jit
def _block_sums(rows, weights, shift):
    x = (jnp.asarray(rows, jnp.result_type(float)) - shift[None, :]) * weights[:, None]
    return jnp.sum(x, axis=0), _products(x)


def _products(x: jax.Array) -> jax.Array:
    """x^T x, [D, D]; blocks below the diagonal are copied, which saves nearly half of the work."""
    parts = jnp.array_split(x, min(_COLUMN_BLOCKS, x.shape[1]), axis=1)
    upper = {
        (i, j): jnp.matmul(a.T, b, precision=HIGHEST)
        for i, a in enumerate(parts)
        for j, b in enumerate(parts)
        if i <= j
    }
    count = range(len(parts))
    return jnp.block([[upper[i, j] if i <= j else upper[j, i].T for j in count] for i in count])


@jax.jit
def _decompose(covariance):
    values, axes = jnp.linalg.eigh(covariance)
    return values[::-1], axes[:, ::-1]


def _fourth_moment(rows, mean, scale) -> float:
    total = 0.0
    for block in iter_blocks(rows, BLOCK_ROWS):
        total += float(_block_fourth(*_pad_rows(block), mean, scale))
    return total / len_rows(rows)


@jax.jit
def _block_fourth(rows, weights, mean, scale):
    z = _standardise(rows, weights, mean, scale)
    return jnp.sum(jnp.sum(z**2, axis=1) ** 2)


def _by_iteration(rows, standardize: bool, rank: int, seed: int, passes: int = 7) -> Spectrum:
    n, width = len_rows(rows), rows.n_features if isinstance(rows, RowBlocks) else rows.shape[1]
    mean, variance = _mean_and_variance(rows)
    scale = _scale_of(variance, mean, n, standardize)
    size = min(rank + 10, n, width)
    basis = np.random.default_rng(seed).standard_normal((width, size))
    for _ in range(passes):
        basis = _orthonormal(_covariance_times(rows, mean, scale, basis) / n)
    small = jnp.matmul(basis.T, _covariance_times(rows, mean, scale, basis), precision=HIGHEST) / n
    values, vectors = _decompose((small + small.T) / 2)
    axes = jnp.matmul(basis, vectors, precision=HIGHEST)
    return Spectrum(
        mean=np.asarray(mean),
        scale=np.asarray(scale),
        eigenvalues=np.maximum(np.asarray(values[:rank]), 0.0),
        axes=np.asarray(axes[:, :rank]),
        total_variance=float(jnp.sum(variance / scale**2)),
        fourth_moment=_fourth_moment(rows, mean, scale),
        n_rows=n,
    )


def _mean_and_variance(rows):
    n = len_rows(rows)
    shift = _first_mean(rows)
    total, squares = jnp.zeros(len(shift)), jnp.zeros(len(shift))
    for block in iter_blocks(rows, BLOCK_ROWS):
        x = jnp.asarray(block, jnp.result_type(float)) - shift[None, :]
        total, squares = total + jnp.sum(x, axis=0), squares + jnp.sum(x**2, axis=0)
    offset = total / n
    return shift + offset, squares / n - offset**2


def _first_mean(rows: np.ndarray | RowBlocks) -> np.ndarray:
    return next(iter_blocks(rows, BLOCK_ROWS)).mean(axis=0, dtype=np.float64)


def _covariance_times(rows, mean, scale, basis):
    total = 0.0
    for block in iter_blocks(rows, BLOCK_ROWS):
        total = total + _block_covariance_times(*_pad_rows(block), mean, scale, basis)
    return total


@jax.jit
def _block_covariance_times(rows, weights, mean, scale, basis):
    z = _standardise(rows, weights, mean, scale)
    return jnp.matmul(z.T, jnp.matmul(z, basis, precision=HIGHEST), precision=HIGHEST)


@jax.jit
def _orthonormal(matrix):
    return jnp.linalg.qr(matrix)[0]


def _standardise(rows, weights, mean, scale):
    x = jnp.asarray(rows, jnp.result_type(float))
    return (x - mean[None, :]) / scale[None, :] * weights[:, None]


def _scale_of(variance, mean, n, standardize: bool):
    """Standard deviations with 1 for columns that are constant up to rounding."""
    if not standardize:
        return jnp.ones_like(variance)
    eps = jnp.finfo(variance.dtype).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return jnp.where(constant, 1.0, jnp.sqrt(variance))


def _pad_rows(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded to few compiled shapes, with weights 1 for the real ones."""
    step = 64 if len(block) <= 1024 else 1024
    size = -(-len(block) // step) * step
    weights = (np.arange(size) < len(block)).astype(np.float64)
    return np.pad(block, ((0, size - len(block)), (0, 0))), weights
