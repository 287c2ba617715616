r"""How good generated pictures are: FID, Inception score, precision and recall against a reference.

::

    python -m bsq_jax score samples.npz --reference digits --statistics digits.stats.npz
    python -m bsq_jax score samples/ --reference folder:/pictures --inception pt_inception.pth
    python -m bsq_jax score samples.npz --statistics digits.stats.npz

Samples are an .npz file with uint8 pictures [N, height, width, 3] as arr_0, or a folder of pictures
of one size; of an animated picture the first frame. The reference is such a file too, or a data
source, whose pictures are resized and cropped to the size of the samples: the split that --split
names, or else its val split, but all pictures of a folder without split folders. What is known of
the reference is kept in the file of statistics, so that it is read once.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bsq_jax.cli.progress import progress
from bsq_jax.core.compilation_cache import enable_compilation_cache
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.sharding import batch_sharding, batch_shards, make_mesh
from bsq_jax.core.text import aligned
from bsq_jax.data import transforms
from bsq_jax.data.decoding.footage import first_frame
from bsq_jax.data.pipeline import DataConfig, open_source
from bsq_jax.data.records import SPLITS, BrokenRecord, Record, Source
from bsq_jax.data.sources import make_source
from bsq_jax.data.sources.folders import IMAGE_EXTENSIONS, report_unread, search
from bsq_jax.evaluation.feature_metrics import FeatureMetrics
from bsq_jax.evaluation.metric import NetworkSettings
from bsq_jax.evaluation.metrics import FeatureStatistics

_BATCH = 16  # on each device
_NAMES = (
    ("fid", "FID"),
    ("frechet_vgg16", "Frechet distance, VGG16 features"),
    ("inception_score", "Inception score"),
    ("precision", "precision"),
    ("recall", "recall"),
)


class Pictures:
    """Pictures of one size in an .npz file or a folder.

    Attributes:
      size: (height, width).
    """

    def __init__(self, place: str | pathlib.Path):
        """Opens them.

        Raises:
          UserError: there are none, or they are no pictures.
        """
        self._place = path = pathlib.Path(place).expanduser()
        self._array: np.ndarray | None = None
        self._files: list[pathlib.Path] = []
        if path.is_dir():
            names, unread = search(path, IMAGE_EXTENSIONS)
            self._files = [path / name for name in names if name != "grid.png"]
            if not self._files:
                hint = f"it holds {unread}" if unread else "check the path"
                raise UserError(f"{path} holds no pictures: {hint}")
            report_unread(str(path), unread)
            self.size: tuple[int, int] = self._read(self._files[0]).shape[:2]
            return
        try:
            with np.load(io.BytesIO(path.read_bytes())) as arrays:
                self._array = arrays["arr_0"]
        except Exception as error:  # of the archive, zlib, the header, a size beyond memory
            raise UserError(
                f"{path} is no .npz file with pictures as arr_0, and no folder ({error})"
            ) from None
        array = self._array
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array):
            raise UserError(
                f"arr_0 of {path} is {array.dtype} {list(array.shape)}: it must be uint8 "
                "[N, height, width, 3]"
            )
        self.size = array.shape[1], array.shape[2]

    def __len__(self) -> int:
        return len(self._files) if self._array is None else len(self._array)

    def batches(self, count: int) -> Iterator[np.ndarray]:
        """All pictures, uint8 ``[batch, height, width, 3]``, `count` at a time.

        Raises:
          UserError: one cannot be read, or is of another size.
        """
        for first in range(0, len(self), count):
            if self._array is not None:
                yield self._array[first : first + count]
                continue
            images = [self._read(file) for file in self._files[first : first + count]]
            for file, image in zip(self._files[first:], images, strict=False):
                if image.shape[:2] != self.size:
                    raise UserError(
                        f"{file} is {image.shape[0]}x{image.shape[1]}, the first picture is "
                        f"{self.size[0]}x{self.size[1]}: all must be of one size"
                    )
            yield np.stack(images)

    def _read(self, file: pathlib.Path) -> np.ndarray:
        try:
            return first_frame(Record(str(file), file.read_bytes()))
        except BrokenRecord as error:
            raise UserError(f"{file} is no picture that can be read: {error}") from None


class _Scorer:
    """Looks at sets of pictures of one size."""

    def __init__(self, size: tuple[int, int], settings: NetworkSettings, *, quiet: bool):
        self._mesh = make_mesh(devices=jax.local_devices())
        self.metrics = FeatureMetrics(settings, self._mesh, clip=(1, *size))
        if not self.metrics.networks:
            raise UserError("; ".join(note.text for note in self.metrics.notes()))
        self._size, self._quiet = size, quiet
        self._batch = _BATCH * batch_shards(self._mesh)

    def pictures(self, pictures: Pictures) -> FeatureStatistics:
        """What is seen in a set of pictures."""
        return self._all(pictures.batches(self._batch), len(pictures))

    def source(self, source: Source) -> FeatureStatistics:
        """What is seen in a data source of pictures."""
        return self._all(self._read(source), len(source))

    def _read(self, source: Source) -> Iterator[np.ndarray]:
        """The middles of pictures, of the scorer's size; unreadable ones are left out."""
        for first in range(0, len(source), self._batch):
            images = []
            for index in range(first, min(first + self._batch, len(source))):
                try:
                    record, side = source[index], max(self._size)
                    image = transforms.load_resized(record, side, "lanczos", draft=False)
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


def score(flags: argparse.Namespace) -> dict[str, Any]:
    """Measures samples; see the command's help.

    Raises:
      UserError: files, sources or weights are missing or do not fit.
    """
    samples = Pictures(flags.samples)
    file = pathlib.Path(flags.statistics) if flags.statistics else None
    saved = file is not None and file.exists()
    reference = None if saved else _open_reference(flags, samples.size)
    settings = NetworkSettings(
        frechet=True,
        inception=flags.inception,
        neighbours=flags.neighbours,
        neighbours_examples=flags.neighbours_examples,
    )
    scorer = _Scorer(samples.size, settings, quiet=flags.quiet)
    metrics = scorer.metrics
    described = {
        "size": list(samples.size),
        "weights": {name: metrics.weights[name] for name in metrics.networks},
        "neighbours": metrics.neighbours,
    }
    if file and saved:
        real, of = _load_statistics(file, metrics, described, flags)
    else:
        assert reference is not None
        of = [flags.reference, flags.split or ""]
        if isinstance(reference, Pictures):
            real = scorer.pictures(reference)
        else:
            real = scorer.source(reference)
        if file:
            about = json.dumps({**described, "reference": of})
            arrays: dict[str, Any] = {"about": np.array(about), **real.to_arrays()}
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            write_atomic(file, buffer.getvalue())
    fake = scorer.pictures(samples)
    return {
        "samples": {"path": str(flags.samples), "count": len(samples)},
        "reference": of,
        "statistics": str(file) if file else None,
        "results": metrics.compare(real, fake),
        "of_reference": metrics.record(real),
        "notes": [note.text for note in metrics.notes(fake)],
    }


def _open_reference(flags: argparse.Namespace, size: tuple[int, int]) -> Pictures | Source:
    """The reference: its pictures, or the records of a data source."""
    if not flags.reference:
        raise UserError(
            f"{flags.statistics} does not exist: give --reference too, and it is made"
            if flags.statistics
            else "what to compare with? Give --reference, or --statistics of one"
        )
    place = pathlib.Path(flags.reference).expanduser()
    if not place.is_dir() and place.suffix != ".npz":
        if flags.split:
            source = open_source(DataConfig(source=flags.reference), flags.split)
        else:
            # Nothing is trained here that a part would have to be kept from.
            source = make_source(flags.reference, "val", divide=False)
        if source.videos:
            raise UserError(f"{flags.reference} holds videos: give pictures")
        return source
    pictures = Pictures(place)
    if pictures.size != size:
        raise UserError(
            f"the reference is {pictures.size[0]}x{pictures.size[1]}, the samples are "
            f"{size[0]}x{size[1]}: give both in one size"
        )
    return pictures


def _load_statistics(
    file: pathlib.Path,
    metrics: FeatureMetrics,
    described: dict[str, Any],
    flags: argparse.Namespace,
) -> tuple[FeatureStatistics, list[str]]:
    """What was kept of a reference, and which one it was."""
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
            of = [str(word) for word in known["reference"]]
    except UserError:
        raise
    except Exception as error:  # of the archive, zlib, the JSON, arrays of other shapes
        raise UserError(f"{file} holds no statistics ({error}): remove it") from None
    # Without --split it was the val split once, and mostly still is: the count tells.
    fits = [flags.split] if flags.split else ["", "val"]
    if flags.reference and (of[0] != flags.reference or of[1] not in fits):
        wanted = f"{flags.reference} {flags.split or ''}".rstrip()
        raise UserError(
            f"{file} is of {' '.join(of).rstrip()}, not of {wanted}: give another --statistics"
        )
    return real, of


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the flags, measures and prints a table; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bsq_jax score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("samples", help="an .npz file or a folder of pictures")
    parser.add_argument("--reference", help="an .npz file, a folder, or a data source")
    parser.add_argument("--split", choices=SPLITS, help="of a data source (val, or a whole folder)")
    parser.add_argument("--statistics", help=".npz file of the reference: read, or made")
    parser.add_argument("--inception", default="", help="file of Inception-v3 weights, for FID, IS")
    parser.add_argument("--neighbours", type=int, default=3, help="k of precision and recall (3)")
    parser.add_argument(
        "--neighbours-examples", type=int, default=10_000, help="the most they look at (10,000)"
    )
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    flags = parser.parse_args(arguments)
    try:
        enable_compilation_cache()
        report = score(flags)
        if flags.json:
            text = json.dumps(report, indent=2) + "\n"
            write_atomic(pathlib.Path(flags.json), text.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    count = report["samples"]["count"]
    results = report["results"]
    rows = [[title, f"{results[key]:.4g}"] for key, title in _NAMES if key in results]
    print("\n".join(aligned(rows)))
    place, split = report["reference"]
    seen = max(told.get("samples", 0) for told in report["of_reference"].values())
    where = f"{place} ({split})" if split else place
    print(f"{count:,d} samples of {flags.samples} against {seen:,d} pictures of {where}")
    for note in report["notes"]:
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
