"""Mean, scale and principal axes of a set of rows, from blocks of any number of rows."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.detectors.rows import RowBlocks, iter_blocks, len_rows
from loopjax.errors import UserError

BLOCK_ROWS = 8192
_SLICE_ROWS = 512
_BANDS = 4
_MAX_MERGED_COLUMNS = 8192  # a covariance of 512 MiB
HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Spectrum:
    """Principal axes of standardized or centered rows.

    Attributes:
        mean: [D]; scale: [D], ones where rows are only centered.
        eigenvalues: [K] variances (divisor n) along `axes`, descending.
        axes: [D, K] orthonormal columns.
        total_variance: trace of the covariance.
        n_rows: how many rows were seen.
    """

    mean: np.ndarray
    scale: np.ndarray
    eigenvalues: np.ndarray
    axes: np.ndarray
    total_variance: float
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


def extend_spectrum(
    found: Spectrum, rows: np.ndarray | RowBlocks, *, standardize: bool
) -> Spectrum:
    """The spectrum of the rows that `found` is of and of further rows [M, D] together, in float64.

    Means and covariances are merged (Chan, Golub and LeVeque 1979) and decomposed again, so the
    result is that of `compute_spectrum` on all rows up to rounding. `found` must have every axis
    along which its rows vary.

    Raises:
        UserError: the covariance would be too large.
    """
    if len(found.mean) > _MAX_MERGED_COLUMNS:
        raise UserError(
            f"further rows of more than {_MAX_MERGED_COLUMNS} columns are not learned without "
            "those before: fit on all rows"
        )
    covariance = (found.axes * found.eigenvalues) @ found.axes.T
    if standardize:  # a variance is 1 here or, of a constant column, 0 up to rounding
        varies = np.diag(covariance) > 0.5
        covariance = covariance * varies * varies[:, None]
    covariance = covariance * found.scale * found.scale[:, None]
    with double_precision():
        mean, further = map(np.asarray, _mean_and_covariance(rows))
        old, new = found.n_rows, len_rows(rows)
        total, step = old + new, mean - found.mean
        merged = (old * covariance + new * further) / total
        merged += np.outer(step, step) * (old * new / total**2)
        return _of_covariance(found.mean + step * (new / total), merged, total, standardize)


def column_moments(rows: np.ndarray | RowBlocks) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column, float64 [D]; 1 where one is constant."""
    with double_precision():
        mean, variance = _mean_and_variance(rows)
        scale = _scale_of(variance, mean, len_rows(rows), standardize=True)
        return np.asarray(mean), np.asarray(scale)


def _by_gram(rows: np.ndarray, standardize: bool) -> Spectrum:
    n = len(rows)
    padded, weights = _pad_rows(rows)
    mean, scale, values, axes = _gram_core(padded, weights, n, standardize=standardize)
    keep = n - 1
    values = np.maximum(np.asarray(values[:keep]), 0.0)
    return Spectrum(
        mean=np.asarray(mean),
        scale=np.asarray(scale),
        eigenvalues=values,
        axes=np.asarray(axes[:, :keep]),
        total_variance=float(values.sum()),
        n_rows=n,
    )


@partial(jax.jit, static_argnames="standardize")
def _gram_core(rows, weights, n, *, standardize):
    x = jnp.asarray(rows, jnp.result_type(float))
    w = weights[:, None]
    mean = jnp.sum(x * w, axis=0) / n
    centered = (x - mean[None, :]) * w
    scale = _scale_of(jnp.sum(centered**2, axis=0) / n, mean, n, standardize)
    z = centered / scale[None, :]
    values, vectors = jnp.linalg.eigh(jnp.matmul(z, z.T, precision=HIGHEST) / n)
    values, vectors = values[::-1], vectors[:, ::-1]
    # Axes of vanishing variance are never used; the floor only keeps them finite.
    lengths = jnp.sqrt(jnp.maximum(values * n, jnp.finfo(x.dtype).tiny))
    axes = jnp.matmul(z.T, vectors, precision=HIGHEST) / lengths[None, :]
    return mean, scale, values, axes


def _by_covariance(rows: np.ndarray | RowBlocks, standardize: bool) -> Spectrum:
    mean, covariance = _mean_and_covariance(rows)
    return _of_covariance(mean, covariance, len_rows(rows), standardize)


def _of_covariance(mean, covariance, n: int, standardize: bool) -> Spectrum:
    scale = _scale_of(jnp.diag(covariance), mean, n, standardize)
    values, axes = _decompose(covariance / scale[None, :] / scale[:, None])
    values = np.maximum(np.asarray(values), 0.0)
    return Spectrum(
        mean=np.asarray(mean),
        scale=np.asarray(scale),
        eigenvalues=values,
        axes=np.asarray(axes),
        total_variance=float(values.sum()),
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
    """Sums [D] and products [D, D] of rows minus `shift`."""
    width = rows.shape[1]
    # A CPU multiplies slices that stay in its cache 1.6 times faster.
    by_slices = jax.default_backend() == "cpu" and len(rows) % _SLICE_ROWS == 0
    size = _SLICE_ROWS if by_slices else len(rows)

    def add(sums, part):
        total, upper = sums
        x = (jnp.asarray(part[0], total.dtype) - shift[None, :]) * part[1][:, None]
        upper = jax.tree.map(jnp.add, upper, _upper_products(x))
        return (total + jnp.sum(x, axis=0), upper), None

    shapes = jax.eval_shape(_upper_products, jnp.zeros((size, width)))
    zeros = (jnp.zeros(width), jax.tree.map(lambda a: jnp.zeros(a.shape), shapes))
    parts = (rows.reshape(-1, size, width), weights.reshape(-1, size))
    total, upper = jax.lax.scan(add, zeros, parts)[0]
    return total, _mirror(upper)


def _upper_products(x: jax.Array) -> list[jax.Array]:
    """x^T x by bands of rows from the diagonal on, which saves nearly half of the work."""
    columns = jax.lax.optimization_barrier(x.T)
    edges = np.linspace(0, len(columns), min(_BANDS, len(columns)) + 1).astype(int)
    return [
        jnp.matmul(columns[start:stop], x[:, start:], precision=HIGHEST)
        for start, stop in pairwise(edges)
    ]


def _mirror(bands: list[jax.Array]) -> jax.Array:
    """The whole symmetric matrix [D, D] of `_upper_products`."""
    width = bands[0].shape[1]
    upper = jnp.concatenate([jnp.pad(b, ((0, 0), (width - b.shape[1], 0))) for b in bands])
    return jnp.triu(upper) + jnp.triu(upper, 1).T


@jax.jit
def _decompose(covariance):
    values, axes = jnp.linalg.eigh(covariance)
    return values[::-1], axes[:, ::-1]


def radial_moments(rows: np.ndarray | RowBlocks, mean: np.ndarray) -> tuple[np.ndarray, float]:
    """Means over rows [N, D] of |y|^2 y, float64 [D], and of |y|^4; y is a row minus `mean` [D]."""
    third, fourth, n = np.zeros(len(mean)), 0.0, len_rows(rows)
    with double_precision():
        for block in iter_blocks(rows, BLOCK_ROWS):
            padded = _pad_rows(block)
            third += np.asarray(_block_third(*padded, mean))
            fourth += float(_block_fourth(*padded, mean))
    return third / n, fourth / n


def moved_moments(
    third: np.ndarray, fourth: float, found: Spectrum, mean: np.ndarray
) -> tuple[np.ndarray, float]:
    """`radial_moments` about `mean` [D] of the rows of `found`, from those about their own mean."""
    step = mean - found.mean
    turned = found.axes @ (found.eigenvalues * (found.axes.T @ step))  # covariance times step
    trace, square = found.total_variance, float(step @ step)
    moved = third - 2 * turned - (trace + square) * step
    across = 4 * step @ turned - 4 * step @ third + 2 * trace * square
    return moved, float(fourth + across + square**2)


@jax.jit
def _block_third(rows, weights, mean):
    x = jnp.asarray(rows, mean.dtype) - mean[None, :]
    return jnp.matmul(jnp.sum(x**2, axis=1) * weights, x, precision=HIGHEST)


@jax.jit
def _block_fourth(rows, weights, mean):
    x = jnp.asarray(rows, mean.dtype) - mean[None, :]
    return jnp.sum(jnp.sum(x**2, axis=1) ** 2 * weights)


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
    x = jnp.asarray(rows, jnp.result_type(float)) - mean[None, :]
    z = x / scale[None, :] * weights[:, None]
    return jnp.matmul(z.T, jnp.matmul(z, basis, precision=HIGHEST), precision=HIGHEST)


@jax.jit
def _orthonormal(matrix):
    return jnp.linalg.qr(matrix)[0]


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
