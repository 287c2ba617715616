"""Measures generated pictures: FID, Inception score, precision and recall against a reference."""

from __future__ import annotations

import io
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.progress import progress
from bsq_jax.core.sharding import batch_sharding, batch_shards, make_mesh
from bsq_jax.data import transforms
from bsq_jax.data.reader import load_resized
from bsq_jax.data.records import BrokenRecord, Source
from bsq_jax.data.sources import make_source
from bsq_jax.evaluation.feature_metrics import FeatureMetrics
from bsq_jax.evaluation.metric import NetworkSettings
from bsq_jax.evaluation.metrics import FeatureStatistics
from bsq_jax.evaluation.picture_set import PictureSet

_BATCH = 16  # on each device


def score(
    samples: str,
    reference: str = "",
    *,
    split: str = "",
    statistics: str = "",
    networks: NetworkSettings,
    quiet: bool = True,
) -> dict[str, Any]:
    """Compares samples with a reference.

    Args:
      samples: an .npz file or a folder of pictures, see `PictureSet`.
      reference: such a place too, or a data source; may be empty where `statistics` exists.
      split: of a data source; empty: ``val``, or all pictures of a folder without split folders.
      statistics: an .npz file with the features of the reference: read where it exists, else
        written; empty for none.
      networks: which metrics, and how many pictures precision and recall compare.
      quiet: draw no progress.

    Returns:
      A report for JSON: metrics by name in ``results``, and what was compared.

    Raises:
      UserError: files, sources or weights are missing or do not fit.
    """
    pictures = PictureSet(samples)
    file = pathlib.Path(statistics) if statistics else None
    if file is None or not file.exists():
        # Opened before the networks are loaded: a mistake in its name is told at once.
        opened = _open_reference(reference, split, statistics, pictures.size)
    else:
        opened = None
    scorer = Scorer(pictures.size, networks, quiet=quiet)
    metrics = scorer.metrics
    described = {
        "size": list(pictures.size),
        "weights": {name: metrics.weights[name] for name in metrics.networks},
        "neighbours": metrics.neighbours,
    }
    if opened is None:
        assert file is not None
        real, of = _load_statistics(file, metrics, described)
        _check_reference(file, of, reference, split)
    else:
        of = [reference, split]
        real = scorer.pictures(opened) if isinstance(opened, PictureSet) else scorer.source(opened)
        if file:
            _save_statistics(file, real, {**described, "reference": of})
    fake = scorer.pictures(pictures)
    return {
        "samples": {"path": samples, "count": len(pictures)},
        "reference": of,
        "statistics": str(file) if file else None,
        "results": metrics.compare(real, fake),
        "of_reference": metrics.record(real),
        "notes": [note.text for note in metrics.notes(fake)],
    }


class Scorer:
    """Computes the features of sets of pictures of one size, on all local devices.

    Attributes:
      metrics: those that pictures of this size allow.
    """

    def __init__(self, size: tuple[int, int], networks: NetworkSettings, *, quiet: bool):
        """Loads the networks.

        Args:
          size: (height, width) of the pictures.
          networks: which metrics, and how many pictures precision and recall compare.
          quiet: draw no progress.

        Raises:
          UserError: weights are missing or damaged, or no network takes pictures of this size.
        """
        self._mesh = make_mesh(devices=jax.local_devices())
        self.metrics = FeatureMetrics(networks, self._mesh, clip=(1, *size))
        if not self.metrics.networks:
            raise UserError("; ".join(note.text for note in self.metrics.notes()))
        self._size, self._quiet = size, quiet
        self._batch = _BATCH * batch_shards(self._mesh)

    def pictures(self, pictures: PictureSet) -> FeatureStatistics:
        """The features of a set of pictures."""
        return self._all(pictures.batches(self._batch), len(pictures))

    def source(self, source: Source) -> FeatureStatistics:
        """The features of all readable pictures of a data source."""
        return self._all(self._read(source), len(source))

    def _read(self, source: Source) -> Iterator[np.ndarray]:
        """Center crops of the scorer's size; unreadable pictures are left out."""
        for first in range(0, len(source), self._batch):
            images = []
            for index in range(first, min(first + self._batch, len(source))):
                try:
                    record, side = source[index], max(self._size)
                    image = load_resized(record, side, "lanczos", draft=False)
                except (BrokenRecord, OSError) as error:
                    logging.warning("Skipping broken record %s#%d: %s", source.name, index, error)
                    continue
                images.append(transforms.center_crop(image, self._size))
            if images:
                yield np.stack(images)

    def _all(self, batches: Iterator[np.ndarray], total: int) -> FeatureStatistics:
        seen, first = self.metrics.new_statistics(total), 0
        sharding = batch_sharding(self._mesh)
        with progress(total, "pictures", quiet=self._quiet) as advance:
            for part in advance(batches, len):
                missing = self._batch - len(part)
                filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
                pixels = jax.device_put(filled[:, None], sharding)
                features = jax.device_get(self.metrics.features(pixels))
                index = np.arange(first, first + len(filled))
                mask = (np.arange(len(filled)) < len(part))[:, None]
                seen.update(features, mask, index)
                first += len(part)
        return seen


def _open_reference(
    reference: str, split: str, statistics: str, size: tuple[int, int]
) -> PictureSet | Source:
    """The reference: its pictures, or the records of a data source."""
    if not reference:
        raise UserError(
            f"{statistics} does not exist: give --reference too, and it is made"
            if statistics
            else "what to compare with? Give --reference, or --statistics of one"
        )
    place = pathlib.Path(reference).expanduser()
    if not place.is_dir() and place.suffix != ".npz":
        # Without a split all of it: nothing is trained here that a part must be kept from.
        source = make_source(reference, split or "val", divide=bool(split))
        if not len(source):
            raise UserError(f"{reference} is empty: choose another reference")
        if source.videos:
            raise UserError(f"{reference} holds videos: give pictures")
        return source
    pictures = PictureSet(place)
    if pictures.size != size:
        raise UserError(
            f"the reference is {pictures.size[0]}x{pictures.size[1]}, the samples are "
            f"{size[0]}x{size[1]}: give both in one size"
        )
    return pictures


def _save_statistics(
    file: pathlib.Path, features: FeatureStatistics, about: dict[str, Any]
) -> None:
    """Writes the features of a reference, and what it is."""
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **features.to_arrays()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(file, buffer.getvalue())


def _load_statistics(
    file: pathlib.Path, metrics: FeatureMetrics, described: dict[str, Any]
) -> tuple[FeatureStatistics, list[str]]:
    """The features that were kept of a reference, and which one it was."""
    real = metrics.new_statistics(1)
    try:
        with np.load(io.BytesIO(file.read_bytes())) as arrays:
            known = json.loads(str(arrays["about"]))
            if {key: known[key] for key in described} != described:
                raise UserError(
                    f"{file} is of other networks or another size "
                    f"({known['size'][0]}x{known['size'][1]}): give another --statistics"
                )
            real.load({name: arrays[name] for name in arrays.files if name != "about"})
            return real, [str(word) for word in known["reference"]]
    except UserError:
        raise
    except Exception as error:  # of the archive, zlib, the JSON, arrays of other shapes
        raise UserError(f"{file} holds no statistics ({error}): remove it") from None


def _check_reference(file: pathlib.Path, of: list[str], reference: str, split: str) -> None:
    """Refuses statistics of another reference than the one that is named."""
    # Without --split it was the val split once, and mostly still is: the count tells.
    fits = [split] if split else ["", "val"]
    if reference and (of[0] != reference or of[1] not in fits):
        wanted = f"{reference} {split}".rstrip()
        raise UserError(
            f"{file} is of {' '.join(of).rstrip()}, not of {wanted}: give another --statistics"
        )
