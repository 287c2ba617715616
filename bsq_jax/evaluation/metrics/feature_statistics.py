"""Statistics of the features of one set of pictures or clips: what two sets are compared by."""

from collections.abc import Mapping

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.metrics.frechet import Moments
from bsq_jax.evaluation.metrics.inception_score import InceptionScore

LOGITS = "logits"
"""Name among features of the class scores for the Inception score."""


class FeatureStatistics:
    """Moments, class scores and a sample of the features of one set, on the host in float64.

    Args:
      dimensions: dimension of the features of each network by its name.
      classes: number of logits for the Inception score; 0 for no logits.
      kept: the network of which a sample of features is kept as it is; None for none.
      share: the number of examples that it is kept of, and of all: ``(wanted, total)``. They are
        evenly spaced by index, so the sample does not depend on batches or hosts.
    """

    def __init__(
        self,
        dimensions: Mapping[str, int],
        classes: int = 0,
        *,
        kept: str | None = None,
        share: tuple[int, int] = (1, 1),
    ) -> None:
        self.moments = {name: Moments(dimension) for name, dimension in dimensions.items()}
        self._score = InceptionScore(classes) if classes else None
        self._kept, self._share = kept, share
        self._sample: list[np.ndarray] = []

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The statistics as arrays to be saved; `load` reads them."""
        parts: dict[str, Moments | InceptionScore] = {
            f"moments/{name}": moments for name, moments in self.moments.items()
        }
        if self._score is not None:
            parts["score"] = self._score
        arrays = {
            f"{name}/{key}": array
            for name, part in parts.items()
            for key, array in part.to_arrays().items()
        }
        return {**arrays, "sample": self.sample()} if self._kept else arrays

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the statistics that `to_arrays` gave of the same networks.

        Raises:
          UserError: the arrays are of other networks.
        """

        def below(name: str) -> dict[str, np.ndarray]:
            prefix = f"{name}/"
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        try:
            for name in self.moments:
                self.moments[name] = Moments.from_arrays(below(f"moments/{name}"))
            if self._score is not None:
                self._score = InceptionScore.from_arrays(below("score"))
            if self._kept is not None:
                self._sample = [arrays["sample"]]
        except KeyError as error:
            raise UserError(f"the statistics lack {error}") from None

    def update(
        self,
        features: Mapping[str, np.ndarray],
        mask: np.ndarray,
        index: np.ndarray,
    ) -> None:
        """Adds a batch.

        Args:
          features: ``[batch, samples, dimension]`` by the name of the network: a sample for each
            frame, or one for each clip. ``logits``, of shape ``[batch, time, classes]``, are those
            for the Inception score.
          mask: ``[batch, time]``, True for frames that count. A clip counts if all its frames do.
          index: ``[batch]``, the index of each example in the split.

        Raises:
          UserError: if shapes do not fit, or features that count are not finite.
        """
        for name, values in features.items():
            if name != LOGITS:
                self.moments[name].update(*_rows(values, mask))
        if self._score is not None and LOGITS in features:
            self._score.update(*_rows(features[LOGITS], mask))
        if self._kept is not None:
            wanted, total = self._share
            chosen = (index + 1) * wanted // total > index * wanted // total
            self._sample.append(features[self._kept][chosen[:, None] & mask])

    def sample(self) -> np.ndarray:
        """The sample of features that was kept, ``[n, dimension]``."""
        return np.concatenate(self._sample) if self._sample else np.zeros((0, 1))

    def inception_score(self) -> float:
        """The Inception score over all samples, in one part."""
        assert self._score is not None
        return self._score.result()[0]


def _rows(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[batch, samples, n]`` as rows ``[batch * samples, n]``, with the mask of each row."""
    if values.shape[1] != mask.shape[1]:
        mask = np.all(mask, axis=1, keepdims=True)
    return values.reshape(-1, values.shape[-1]), mask.reshape(-1)
