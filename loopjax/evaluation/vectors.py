"""Vectors of numbers that every function here takes: checked once, in one way."""

import numpy as np
from numpy.typing import ArrayLike

from loopjax.errors import UserError


def finite_vector(values: ArrayLike, what: str) -> np.ndarray:
    """Returns `values` as a float64 vector [N].

    Raises:
        UserError: empty, not one-dimensional, NaN or infinite; `what` names the values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UserError(f"{what}: expected a non-empty row of numbers, found {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{what}: {int((~np.isfinite(array)).sum())} of {array.size} not finite")
    return array
