"""Inception score (Salimans et al. 2016): each picture of one class, all pictures of many."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from bsq_jax.core.errors import UserError


class InceptionScore:
    """Streaming ``exp(E_x KL(p(y|x) || p(y)))`` of class logits, in float64 on the host.

    It is 1 when the classifier gives all pictures the same probabilities, and the number of classes
    when each picture is of one class with certainty and all classes are equally common.

    Args:
      classes: number of logits.
      splits: the score is computed on each of so many parts and averaged. One part, the default,
        is the definition over all samples. Published figures often use 10 parts of 5,000 samples
        each, which lowers the score a little. Samples go to the parts in turn, so that parts are
        similar even when the data are sorted; code that cuts the list into consecutive parts needs
        shuffled data for the same score.
    """

    def __init__(self, classes: int, splits: int = 1) -> None:
        if splits < 1:
            raise UserError(f"the Inception score needs at least 1 split, got {splits}")
        self._count = 0
        self._counts = np.zeros(splits)
        self._probabilities = np.zeros((splits, classes))  # sums of p(y|x)
        self._negentropy = np.zeros(splits)  # sums of E[log p(y|x)]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sums as arrays to be saved."""
        return {
            "counts": self._counts,
            "probabilities": self._probabilities,
            "negentropy": self._negentropy,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """A score from the arrays that `to_arrays` gave."""
        splits, classes = arrays["probabilities"].shape
        score = cls(classes, splits)
        score._counts, score._negentropy = arrays["counts"], arrays["negentropy"]
        score._probabilities, score._count = arrays["probabilities"], int(arrays["counts"].sum())
        return score

    def update(self, logits: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Adds a batch.

        Args:
          logits: ``[n, classes]``, before the softmax.
          mask: ``[n]``, True or positive for rows that count. Whatever the others hold, NaN
            included, leaves no trace.

        Raises:
          UserError: if the shapes do not fit.
        """
        rows, keep = np.asarray(logits), np.asarray(mask) > 0
        splits, classes = self._probabilities.shape
        if rows.ndim != 2 or rows.shape[1] != classes or keep.shape != rows.shape[:1]:
            raise UserError(
                f"expected logits [n, {classes}] and a mask [n], "
                f"got shapes {rows.shape} and {keep.shape}"
            )
        rows = rows[keep].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        # p log p is 0 where p is, also for a logit of -inf.
        negentropy = np.sum(p * np.where(p > 0, log_p, 0.0), axis=1)
        part = (self._count + np.arange(len(rows))) % splits
        np.add.at(self._counts, part, 1)
        np.add.at(self._probabilities, part, p)
        np.add.at(self._negentropy, part, negentropy)
        self._count += len(rows)

    def result(self) -> tuple[float, float]:
        """The mean of the score over the parts, and its standard deviation (0 for one part).

        Raises:
          UserError: if there are fewer samples than parts.
        """
        if self._count < len(self._counts):
            raise UserError(
                f"the Inception score over {len(self._counts)} part(s) has only {self._count} "
                "sample(s): evaluate more"
            )
        marginal = self._probabilities / self._counts[:, None]
        log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
        divergence = self._negentropy / self._counts - np.sum(marginal * log_marginal, axis=1)
        scores = np.exp(divergence)
        return float(scores.mean()), float(scores.std())
