"""Where loops lie on a map: the plane of their first two principal components."""

import numpy as np


def principal_plane(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects [N, D] onto its first two principal components.

    Returns:
        ([N, 2] coordinates with the sign fixed, so equal data give equal pictures; [2] fraction of
        variance). Rows of one dimension or one row alone give zeros for what is missing.
    """
    centered = matrix - matrix.mean(axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    plane = np.zeros((len(matrix), 2))
    fraction = np.zeros(2)
    kept = min(2, len(s))
    plane[:, :kept] = u[:, :kept] * s[:kept]
    plane *= np.where(np.take_along_axis(plane, np.abs(plane).argmax(0)[None], 0) < 0, -1, 1)
    total = float(np.sum(s**2))
    if total > 0:
        fraction[:kept] = s[:kept] ** 2 / total
    return plane, fraction
