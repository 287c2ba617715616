"""Where pictures come from: random access to records, one small class a kind of place.

A source is a sequence of records; position and content never change while a run lasts, so that an
index is all a pipeline needs to carry. Sources hand out encoded bytes where they have them and
leave decoding to the pipeline's threads.
"""

import difflib
import glob
import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from bsq_jax.core.errors import UserError

SPLITS = ("train", "val")

IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)

_VAL_FOLDERS = ("val", "validation", "valid", "test")
_VAL_FRACTION = 0.1

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


class Record(NamedTuple):
    """One picture as its source holds it.

    Attributes:
      id: A name that a person can find the picture by: a path, or a dataset and a number.
      image: The encoded file, or decoded pixels: uint8 [height, width, 3], 0..255.
    """

    id: str
    image: bytes | np.ndarray


class Source(Protocol):
    """Random access to a fixed sequence of records; reading from several threads is safe."""

    name: str

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The record at ``index``; raises ``OSError`` when its bytes cannot be read."""
        ...


class FileSource:
    """Picture files in a fixed order, read anew at each access."""

    def __init__(self, name: str, files: Sequence[tuple[str, str]]):
        """Takes ``files`` as pairs of (record id, path)."""
        self.name = name
        self._files = tuple(files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        record_id, path = self._files[index]
        return Record(record_id, pathlib.Path(path).read_bytes())


class ArrayRecordSource:
    """Encoded pictures in array_record files: each record is the bytes of one picture file."""

    def __init__(self, name: str, records: Sequence[bytes], positions: np.ndarray):
        """Takes open ``records`` and which ``positions`` of them belong to this source."""
        self.name = name
        self._records = records
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Record:
        position = int(self._positions[index])
        return Record(f"{self.name}#{position}", _read(self._records, position))


class TfdsSource:
    """One split of a prepared TensorFlow dataset; pictures come as their stored bytes."""

    def __init__(self, name: str, data_source: Sequence[dict[str, Any]], feature: str):
        self.name = name
        self._data_source = data_source
        self._feature = feature

    def __len__(self) -> int:
        return len(self._data_source)

    def __getitem__(self, index: int) -> Record:
        return Record(f"{self.name}#{index}", _read(self._data_source, index)[self._feature])


def _read(records: Sequence[Any], position: int) -> Any:
    """One record; damage that the array_record library reports in its own ways is an OSError."""
    try:
        return records[position]
    except (RuntimeError, ValueError) as error:
        raise OSError(str(error).partition("\n")[0]) from error


class SyntheticSource:
    """Colourful pictures drawn by a formula: a gradient, soft waves, discs and boxes.

    Picture ``index`` of a split is always the same and in no other split. They cost nothing to
    store and are for tests and trials of speed, not for judging a model.
    """

    def __init__(self, split: str, count: int = 64, size: int = 96):
        self.name = f"synthetic/{split}"
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


def make_source(spec: str, split: str, *, divide: bool = True) -> Source:
    """Opens the pictures that a source spec names.

    ``photos``
      Eleven real colour photographs that come inside scikit-image and scikit-learn, divided by
      photograph: 8 to train on, 3 to validate on. Nothing is downloaded.
    ``folder:PATH``
      Every picture file below PATH, sorted by path. If PATH holds ``train`` and one of ``val``,
      ``validation``, ``valid`` or ``test``, those are the splits. Otherwise a picture belongs to
      val when a hash of its path below PATH falls in the lowest tenth, so adding pictures moves no
      other; if none does, the one with the lowest hash is val.
    ``tfds:NAME`` or ``tfds:NAME@DATA_DIR``
      A dataset that tensorflow-datasets has prepared as array_record files; val is its
      ``validation`` split if it has one, else ``test``.
    ``array_record:GLOB`` or ``array_record:TRAIN_GLOB|VAL_GLOB``
      Files whose records are encoded pictures, sorted by path. With one glob every tenth record,
      from the first, is val.
    ``synthetic``
      64 drawn pictures of 96 x 96 a split, for tests.

    Args:
      spec: One of the above.
      split: 'train' or 'val'.
      divide: False if the other split comes from another spec: then a folder without split
        folders, or a lone glob, is used whole instead of being divided.

    Raises:
      UserError: The spec or split is unknown, or what it names is missing or holds no pictures.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    scheme, colon, rest = spec.partition(":")
    plain: dict[str, Callable[[str], Source]] = {"photos": _photos, "synthetic": SyntheticSource}
    with_place: dict[str, Callable[[str, str, bool], Source]] = {
        "folder": _folder,
        "tfds": _tfds,
        "array_record": _array_record,
    }
    if scheme in plain:
        if colon:
            raise UserError(
                f"data source {spec!r}: {scheme} takes nothing after it, write {scheme!r}"
            )
        return plain[scheme](split)
    if scheme in with_place:
        if not rest:
            raise UserError(
                f"data source {spec!r} names no place: write {scheme}:... after the colon"
            )
        return with_place[scheme](rest, split, divide)
    if os.path.isdir(os.path.expanduser(spec)):
        raise UserError(
            f"unknown data source {spec!r}: for a folder of pictures write 'folder:{spec}'"
        )
    known = [*plain, *with_place]
    near = difflib.get_close_matches(scheme.lower(), known, n=1, cutoff=0)[0]
    raise UserError(
        f"unknown data source {spec!r}: did you mean {near!r}? (known: {', '.join(known)})"
    )


def _photos(split: str) -> Source:
    files = []
    for package, inner in _PHOTOS[split]:
        # The package's folder, without importing the package: scikit-learn takes a second.
        found = importlib.util.find_spec(package)
        roots = list(found.submodule_search_locations or ()) if found else []
        path = next((p for root in roots if (p := pathlib.Path(root, inner)).is_file()), None)
        if path is None:
            wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
            raise UserError(
                f"data source 'photos': {inner} is not in the installed {wheel}; "
                f"run 'pip install --force-reinstall {wheel}' or use folder:PATH"
            )
        files.append((path.name, str(path)))
    return FileSource(f"photos/{split}", files)


def _folder(place: str, split: str, divide: bool) -> Source:
    root = pathlib.Path(place).expanduser()
    if not root.is_dir():
        raise UserError(f"folder:{place} is not a folder: check the path")
    val_folder = next((name for name in _VAL_FOLDERS if (root / name).is_dir()), None)
    if val_folder and (root / "train").is_dir():
        folder = "train" if split == "train" else val_folder
        chosen = [f"{folder}/{path}" for path in _pictures_below(root / folder)]
        where = f"{place}/{folder}"
    else:
        chosen = _pictures_below(root)
        where = place
        if divide and chosen:
            chosen = _hash_split(chosen, split, place)
    if not chosen:
        raise UserError(
            f"folder:{where} holds no pictures: check the path "
            f"(known file names: *{', *'.join(sorted(IMAGE_EXTENSIONS))})"
        )
    return FileSource(f"folder:{where}", [(path, str(root / path)) for path in chosen])


def _pictures_below(root: pathlib.Path) -> list[str]:
    """Paths of picture files relative to ``root``, sorted; hidden files are left out."""
    found, entered = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link back up the tree would go round for ever
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                found.append(pathlib.Path(folder, name).relative_to(root).as_posix())
    return sorted(found)


def _hash_split(paths: list[str], split: str, place: str) -> list[str]:
    def position(path: str) -> float:
        digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    positions = [position(path) for path in paths]
    bound = max(_VAL_FRACTION, np.nextafter(min(positions), 1))
    in_val = [value < bound for value in positions]
    if all(in_val):
        raise UserError(
            f"folder:{place} has too few pictures ({len(paths)}) to divide into train and val: "
            "add pictures, or make train/ and val/ folders in it"
        )
    return [path for path, val in zip(paths, in_val, strict=True) if val == (split == "val")]


def _array_record(place: str, split: str, divide: bool) -> Source:
    try:
        from array_record.python import array_record_data_source
    except ImportError as error:
        raise UserError(
            f"array_record:{place} needs 'pip install array_record' ({error})"
        ) from error

    globs = place.split("|")
    if len(globs) > 2:
        raise UserError(f"array_record:{place} has {len(globs)} globs: give one, or TRAIN|VAL")
    pattern = globs[-1] if split == "val" else globs[0]
    paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not paths:
        raise UserError(f"array_record:{pattern} matches no file: check the glob")
    try:
        records = array_record_data_source.ArrayRecordDataSource(paths)
        total = len(records)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"array_record:{pattern}: not array_record files ({reason})") from error
    positions = np.arange(total)
    if len(globs) == 1 and divide:
        positions = positions[(positions % round(1 / _VAL_FRACTION) == 0) == (split == "val")]
    if not positions.size:
        raise UserError(f"array_record:{pattern} has no records for {split} ({total} in all)")
    return ArrayRecordSource(f"array_record:{pattern}", records, positions)


def _tfds(place: str, split: str, divide: bool) -> Source:
    del divide  # a prepared dataset always has splits of its own
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"tfds:{place} needs 'pip install tensorflow-datasets' ({error})"
        ) from error

    name, _, data_dir = place.partition("@")
    folder = os.path.expanduser(data_dir) or None
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"tfds:{place} is unknown to tensorflow-datasets ({reason})") from error
    if not builder.info.splits:
        where = f", data_dir={folder!r}" if folder else ""
        raise UserError(
            f"tfds:{place} is not prepared in {builder.data_path}; prepare it once with: python -c "
            f'"import tensorflow_datasets as tfds; tfds.builder({name!r}{where}, '
            "file_format='array_record').download_and_prepare()\""
        )
    names = ["train"] if split == "train" else ["validation", "test"]
    chosen = next((n for n in names if n in builder.info.splits), None)
    if chosen is None:
        raise UserError(
            f"tfds:{place} has no split {' or '.join(map(repr, names))} "
            f"(it has: {', '.join(builder.info.splits)}); give another source for {split}"
        )
    pictures = [k for k, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    if not pictures:
        raise UserError(
            f"tfds:{place} has no picture among its features ({', '.join(builder.info.features)})"
        )
    feature = "image" if "image" in pictures else pictures[0]
    # The bytes stay as they are stored; the pipeline's threads decode them.
    decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
    try:
        data_source = builder.as_data_source(split=chosen, decoders=decoders)
    except NotImplementedError as error:  # prepared in a format without random access
        raise UserError(
            f"tfds:{place} is stored as {builder.info.file_format}: prepare it in another folder "
            "with file_format='array_record' and give that as tfds:NAME@DATA_DIR"
        ) from error
    return TfdsSource(f"tfds:{name}/{chosen}", data_source, feature)
