"""Sources that need no files: photographs and digits inside packages, and drawn pictures."""

import functools
import importlib.util
import pathlib

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data.records import SPLITS, Record, Source
from bsq_jax.data.sources.folders import FileSource

# Colour photographs only: no drawings, scans of text, textures or grey pictures. The two motorcycle
# pictures are a stereo pair of one scene, so they stay on the same side of the split.
_PHOTOS = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("sklearn", "datasets/images/china.jpg"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/motorcycle_right.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/retina.jpg"),
        ("skimage", "data/ihc.png"),
        ("skimage", "data/rocket.jpg"),
    ),
    "val": (
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/coffee.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
}


class SyntheticSource:
    """Colourful pictures drawn by a formula: a gradient, soft waves, discs and boxes.

    Picture ``index`` of a split is always the same and in no other split. They cost nothing to
    store and are for tests and trials of speed, not for judging a model.
    """

    def __init__(self, split: str, count: int = 64, size: int = 96):
        self.name = f"synthetic/{split}"
        self.videos = False
        self._stream = SPLITS.index(split)
        self._count = count
        self._size = size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f"{self.name} has {self._count} records, index {index} is not one")
        rng = np.random.default_rng([self._stream, index])
        y, x = np.mgrid[0 : self._size, 0 : self._size].astype(np.float32) / self._size
        corner, across, down = rng.uniform(0, 255, (3, 3)).astype(np.float32)
        image = corner + (across - corner) * x[..., None] + (down - corner) * y[..., None]
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        wave = np.sin(rng.uniform(4, 30) * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        image += wave[..., None] * rng.uniform(-40, 40, 3).astype(np.float32)
        for _ in range(6):
            centre_x, centre_y, half = *rng.uniform(0, 1, 2), rng.uniform(0.05, 0.25)
            distance_x, distance_y = np.abs(x - centre_x), np.abs(y - centre_y)
            if rng.random() < 0.5:
                inside = np.hypot(distance_x, distance_y) < half
            else:
                inside = np.maximum(distance_x, distance_y * rng.uniform(0.5, 2)) < half
            image[inside] = 0.2 * image[inside] + 0.8 * rng.uniform(0, 255, 3)
        return Record(f"{self.name}#{index}", np.clip(np.rint(image), 0, 255).astype(np.uint8))


class DigitsSource:
    """Handwritten digits: 1,797 pictures of 8 x 8 in ten classes, which come inside scikit-learn.

    They are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
    UCI Machine Learning Repository, CC BY 4.0). Every fifth is in val. White on black.
    """

    def __init__(self, split: str):
        self.name = f"digits/{split}"
        self.videos = False
        self.classes = tuple("0123456789")
        pixels, labels = _digits()
        is_val = np.arange(len(labels)) % 5 == 0
        chosen = is_val if split == "val" else ~is_val
        self._pixels, self._labels = pixels[chosen], labels[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        return Record(f"{self.name}#{index}", self._pixels[index])

    def label(self, index: int) -> int:
        """See `bsq_jax.data.records.Labelled`."""
        return int(self._labels[index])


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 ``[1797, 8, 8, 3]`` and labels."""
    rows = np.loadtxt(
        packaged_file("sklearn", "datasets/data/digits.csv.gz", "digits"), delimiter=","
    )
    grey = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return np.repeat(grey, 3, axis=-1), rows[:, -1].astype(np.int64)


def photos(split: str) -> Source:
    """The embedded photographs; see `bsq_jax.data.sources.make_source`."""
    files = []
    for package, inner in _PHOTOS[split]:
        path = packaged_file(package, inner, "photos")
        files.append((path.name, str(path)))
    return FileSource(f"photos/{split}", files)


def packaged_file(package: str, inner: str, source: str) -> pathlib.Path:
    """A file inside a package that is not imported for it: scikit-learn takes a second.

    Args:
      package: ``skimage`` or ``sklearn``.
      inner: path inside it.
      source: what needs it, for the message.

    Raises:
      UserError: it is not there.
    """
    found = importlib.util.find_spec(package)
    roots = list(found.submodule_search_locations or ()) if found else []
    path = next((p for root in roots if (p := pathlib.Path(root, inner)).is_file()), None)
    if path is None:
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise UserError(
            f"data source '{source}': {inner} is not in the installed {wheel}; "
            f"run 'pip install --force-reinstall {wheel}' or use folder:PATH"
        )
    return path
