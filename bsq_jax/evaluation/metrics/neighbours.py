"""Improved precision and recall of one set of features against another."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bsq_jax.core.errors import UserError

# Squared distances closer than this, times the squared norms, differ by rounding alone.
_ROUNDING = 1e-13


def precision_recall(
    real: npt.ArrayLike, fake: npt.ArrayLike, k: int = 3, chunk: int = 1024
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equation 1).

    A set covers the union of balls around its points, each reaching to the point's k-th nearest
    neighbour in the same set, itself not counted. Precision is the share of `fake` that `real`
    covers, recall the share of `real` that `fake` covers; the rim of a ball belongs to it.

    All pairs are compared, in float64 on centred features, `chunk` rows at a time: time grows with
    the square of the number of samples, memory does not.

    Args:
      real: ``[n, dimension]``.
      fake: ``[m, dimension]``.
      k: which neighbour gives the radius.
      chunk: rows a block.

    Returns:
      ``(precision, recall)``, both in [0, 1].

    Raises:
      UserError: if the shapes do not fit, a set has at most k points, or a value is not finite.
    """
    a, b = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(f"expected features [n, d] and [m, d], got shapes {a.shape} and {b.shape}")
    if k < 1 or min(len(a), len(b)) <= k:
        raise UserError(
            f"the {k}-th nearest neighbours need more than {max(k, 1)} samples and a k of at "
            f"least 1, got {len(a)} and {len(b)}: evaluate more or lower k"
        )
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        raise UserError("features are not finite: check the pixels they come from")
    # Centered, because |x|^2 - 2xy + |y|^2 loses digits where its terms are much larger than it.
    centre = (a.mean(axis=0) + b.mean(axis=0)) / 2
    a, b = a - centre, b - centre
    radii_a, radii_b = _radii(a, k, chunk), _radii(b, k, chunk)
    tolerance = _ROUNDING * (np.square(a).sum(axis=1).max() + np.square(b).sum(axis=1).max())
    in_a = np.zeros(len(b), bool)  # points of b that a covers
    in_b = np.zeros(len(a), bool)
    for rows, squared in _squared_distances(a, b, chunk):
        in_a |= np.any(squared <= radii_a[rows, None] + tolerance, axis=0)
        in_b[rows] = np.any(squared <= radii_b + tolerance, axis=1)
    return float(in_a.mean()), float(in_b.mean())


def _squared_distances(
    a: np.ndarray, b: np.ndarray, chunk: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances between rows of a and b, as ``(rows of a, [rows, len(b)])``."""
    squares = np.square(b).sum(axis=1)
    for start in range(0, len(a), chunk):
        rows = slice(start, min(start + chunk, len(a)))
        block = a[rows] @ b.T
        block *= -2
        block += squares
        block += np.square(a[rows]).sum(axis=1)[:, None]
        yield rows, np.maximum(block, 0.0, out=block)


def _radii(points: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest neighbour."""
    radii = np.empty(len(points))
    for rows, squared in _squared_distances(points, points, chunk):
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf  # itself
        radii[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii
