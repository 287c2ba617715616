"""Frozen networks as judges of reconstructions: LPIPS, Frechet distances, Inception score, FVD.

What the networks see is gathered and summed up on the host in float64. Every
example counts once, whatever the batch size and the number of hosts. Reconstructions are judged as
pictures of 8 bits a channel, like all metrics here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bsq_jax.core.chunks import map_chunks
from bsq_jax.core.clips import real_frames
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import jit_on, replicated
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.feature_networks import FRAMES, Judging, Networks
from bsq_jax.evaluation.metrics import FeatureSet
from bsq_jax.evaluation.networks.lpips import lpips

__all__ = ["Judges", "Judging", "Pass"]


class Judges:
    """The judges of one evaluation.

    Args:
      judging: which networks judge.
      mesh: the run's mesh.
      clip: frames, height and width of an example.
      patch: side of a patch in pixels, for the yardstick of one colour a patch.
      examples: number of examples in the split.

    Raises:
      UserError: weights are missing or damaged.
    """

    def __init__(
        self, judging: Judging, mesh: Mesh, *, clip: tuple[int, int, int], patch: int, examples: int
    ) -> None:
        self._networks = Networks(judging, mesh, clip=clip)
        self._mesh, self._patch = mesh, patch
        self._share = max(judging.neighbours_examples // clip[0], 1), max(examples, 1)
        self._originals: FeatureSet | None = None
        self._shorter = 0
        self._measure = jit_on(mesh, self._distances, out_shardings=replicated(mesh))

    # --- on the mesh ---

    def _distances(
        self, params: Any, original: jax.Array, reconstruction: jax.Array
    ) -> dict[str, jax.Array]:
        """LPIPS ``[batch, time]`` of the reconstruction, and of one colour a patch."""

        def distance(a: jax.Array, b: jax.Array) -> jax.Array:
            return lpips(params["lpips"], to_float(a), to_float(b), net="alexnet")

        oracle = jnp.round(metrics.patch_mean(original, self._patch))
        found = {}
        for name, other in (("lpips", reconstruction), ("oracle_lpips", oracle)):
            pair = self._networks.frames(original), self._networks.frames(other)
            each = map_chunks(distance, *pair, mesh=self._mesh, most=FRAMES)
            found[name] = each.reshape(original.shape[:2])
        return found

    # --- an evaluation ---

    def look(self, original: jax.Array, reconstruction: jax.Array) -> dict[str, Any]:
        """Shows the networks a batch.

        Args:
          original: uint8 ``[batch, time, height, width, 3]`` on the mesh.
          reconstruction: the same shape.

        Returns:
          Replicated arrays: ``values``, per frame ``[batch, time]`` by name; ``reconstructions``,
          and unless they were all seen before ``originals``, what `Pass.update` takes.
        """
        shown: dict[str, Any] = {"values": {}}
        networks = self._networks
        if "lpips" in networks.params:
            shown["values"] = self._measure(networks.params, original, reconstruction)
        if networks.spaces:
            shown["reconstructions"] = networks.look(networks.params, reconstruction)
            if self._originals is None:
                shown["originals"] = networks.look(networks.params, original)
        return shown

    def begin(self) -> Pass:
        """Begins to judge one set of reconstructions of the whole split."""
        new = functools.partial(self._networks.new_set, self._share)
        return Pass(new(), new() if self._originals is None else self._originals)

    def result(self, seen: Pass) -> dict[str, float]:
        """Measures of a whole pass; what too few samples do not allow is left out."""
        # Kept from the first whole pass on: originals are the same for all sets of weights.
        self._originals, self._shorter = seen.originals, seen.shorter
        return self._networks.compare(seen.originals, seen.reconstructions)

    # --- the record ---

    def about(self) -> dict[str, Any]:
        """How it was measured, by the name of the measure, for the record. After a whole pass."""
        found: dict[str, Any] = {}
        networks = self._networks
        if "lpips" in networks.params:
            found["lpips"] = {"features": "AlexNet", "weights": networks.weights["lpips"]}
        if self._originals is None:
            return found
        return {**found, **networks.about(self._originals)}

    def notes(self) -> list[str]:
        """Lines for below the table: what is left out and why, and what to beware of."""
        networks = self._networks
        notes = list(networks.notes)
        if self._originals is None:
            return notes
        notes += networks.neighbours_note(self._originals)
        if "i3d" in networks.spaces and self._shorter:
            notes.append(f"FVD: {self._shorter:,d} clips that are too short are left out")
        return notes + networks.biased(self._originals)


@dataclasses.dataclass
class Pass:
    """What was seen in one pass over the split.

    Attributes:
      reconstructions: of the reconstructions.
      originals: of their originals, shared by all passes once one is complete.
      shorter: clips seen that are shorter than the others and padded.
    """

    reconstructions: FeatureSet
    originals: FeatureSet
    shorter: int = 0

    def update(self, shown: Mapping[str, Any], batch: Mapping[str, np.ndarray]) -> None:
        """Adds what `Judges.look` returned, fetched, for a batch of the data pipeline."""
        time, counted = batch["pixels"].shape[1], batch["mask"] > 0
        real = real_frames(batch["frames"], time) & counted[:, None]
        self.shorter += int(np.sum(counted & (batch["frames"] < time)))
        for kind in ("reconstructions", "originals"):
            if kind in shown:
                features = dict(shown[kind])
                logits = features.pop("logits", None)
                getattr(self, kind).update(features, logits, real, batch["index"])
