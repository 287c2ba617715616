"""Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017)."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from bsq_jax.core.errors import UserError

_CHUNK = 1024  # rows taken in at a time


class Moments:
    """Streaming mean and covariance of features, in float64 on the host.

    Rows are taken in by blocks of a fixed number, each centred on its own mean before it is squared
    (Chan, Golub and LeVeque 1983). So a large common offset costs no digits, and the result does
    not depend on how the rows came in batches.

    Args:
      dimension: length of a feature vector.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._count = 0
        self._mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))  # sum of (x - mean)(x - mean)^T
        self._waiting = np.zeros((0, dimension))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The moments as arrays to be saved."""
        count, mean, scatter = self._with(self._waiting)
        return {"count": np.array(count), "mean": mean, "scatter": scatter}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Moments from the arrays that `to_arrays` gave."""
        moments = cls(len(arrays["mean"]))
        moments._count = int(arrays["count"])
        moments._mean, moments._scatter = arrays["mean"], arrays["scatter"]
        return moments

    def update(self, features: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Adds a batch.

        Args:
          features: ``[n, dimension]``.
          mask: ``[n]``, True or positive for rows that count. Whatever the others hold, NaN
            included, leaves no trace.

        Raises:
          UserError: if the shapes do not fit, or a row that counts is not finite.
        """
        rows, keep = np.asarray(features), np.asarray(mask) > 0
        if rows.ndim != 2 or rows.shape[1] != self.dimension or keep.shape != rows.shape[:1]:
            raise UserError(
                f"expected features [n, {self.dimension}] and a mask [n], "
                f"got shapes {rows.shape} and {keep.shape}"
            )
        rows = rows[keep].astype(np.float64)
        if not np.all(np.isfinite(rows)):
            raise UserError("features are not finite: check the pixels they come from")
        self._waiting = np.concatenate([self._waiting, rows])
        while len(self._waiting) >= _CHUNK:
            self._count, self._mean, self._scatter = self._with(self._waiting[:_CHUNK])
            self._waiting = self._waiting[_CHUNK:]

    def _with(self, rows: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """Count, mean and scatter with more rows taken in."""
        if not len(rows):
            return self._count, self._mean, self._scatter
        count = self._count + len(rows)
        mean = rows.mean(axis=0)
        shift = mean - self._mean
        # The distance between the two means is one more row of the scatter.
        between = np.sqrt(self._count * len(rows) / count) * shift
        centred = np.concatenate([rows - mean, between[None]])
        return count, self._mean + shift * (len(rows) / count), self._scatter + centred.T @ centred

    @property
    def count(self) -> int:
        """Number of rows counted."""
        return self._count + len(self._waiting)

    @property
    def mean(self) -> np.ndarray:
        """Mean ``[dimension]``; zeros if no row was counted."""
        return self._with(self._waiting)[1]

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance ``[dimension, dimension]``: divided by ``count - 1``.

        Raises:
          UserError: if fewer than 2 rows were counted.
        """
        count, _, scatter = self._with(self._waiting)
        if count < 2:
            raise UserError(f"a covariance needs at least 2 samples, got {count}: evaluate more")
        return scatter / (count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance between the Gaussians of two sets of features.

    ``|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Heusel et al. 2017, equation 6).
    With symmetric roots the last trace is the sum of the singular values of
    ``C_a^(1/2) C_b^(1/2)``, which are real whatever the rank of the covariances, and whose rounding
    errors, unlike those of the eigenvalues of the product, are not magnified by a root.

    Args:
      a: moments of at least 2 samples.
      b: moments of at least 2 samples, of the same dimension.

    Returns:
      The distance, at least 0.

    Raises:
      UserError: if there are too few samples or the dimensions differ.
    """
    if a.dimension != b.dimension:
        raise UserError(f"features of {a.dimension} and {b.dimension} dimensions do not compare")
    covariance_a, covariance_b = a.covariance, b.covariance
    root = np.linalg.svd(_factor(covariance_a).T @ _factor(covariance_b), compute_uv=False).sum()
    spread = np.trace(covariance_a) + np.trace(covariance_b) - 2 * root
    return max(float(np.sum((a.mean - b.mean) ** 2) + spread), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F ``[dimension, rank]`` with ``F F^T`` the covariance, without directions of rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
