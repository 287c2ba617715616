"""The list of data sources, which give random access to pictures or videos by a short spec.

A source is a sequence of records; position and content never change while a run lasts, so that an
index is all a pipeline needs to carry. Sources hand out encoded bytes where they have them and
leave decoding to the pipeline's threads.
"""

import difflib
import os
from collections.abc import Callable

from bsq_jax.core.errors import UserError
from bsq_jax.core.own_parts import is_own
from bsq_jax.data.records import SPLITS, Source
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.sources import array_record_files, embedded, folders, tfds
from bsq_jax.data.sources.motion import MotionSource
from bsq_jax.data.sources.own import make_own_source
from bsq_jax.data.sources.parquet import open_parquet
from bsq_jax.data.sources.webdataset import open_webdataset

# Sources that a name alone selects, opened with the split.
_NAMED: dict[str, Callable[[str], Source]] = {
    "photos": embedded.photos,
    "digits": embedded.DigitsSource,
    "motion": lambda split: MotionSource(embedded.photos(split), split),
    "synthetic": embedded.SyntheticSource,
}
# Sources written NAME:PLACE, opened with the place, the split, and whether to divide.
_PLACED: dict[str, Callable[[str, str, bool], Source]] = {
    "folder": folders.pictures,
    "clips": folders.clips,
    "tfds": tfds.open_tfds,
    "array_record": array_record_files.open_array_record,
    "parquet": open_parquet,
    "webdataset": open_webdataset,
}


def same_place(spec: str) -> str:
    """A spec in one spelling: equal for two that name the same folder or file."""
    scheme, _, place = spec.partition(":")
    if scheme in ("folder", "clips") and place:
        return f"{scheme}:{os.path.realpath(os.path.expanduser(place))}"
    if scheme in ("array_record", "parquet", "webdataset") and place:
        patterns = (os.path.abspath(os.path.expanduser(part)) for part in place.split("|"))
        return f"{scheme}:{'|'.join(patterns)}"
    return spec


def make_source(spec: str, split: str, *, divide: bool = True) -> Source:
    """Opens the pictures or videos that a source spec names.

    Pictures:

    ``photos``
      Eleven real colour photographs that come inside scikit-image and scikit-learn, divided by
      photograph: 8 to train on, 3 to validate on. Nothing is downloaded.
    ``folder:PATH``
      Every picture file below PATH, sorted by path. If PATH holds ``train`` and one of ``val``,
      ``validation``, ``valid`` or ``test``, those are the splits. Otherwise a picture belongs to
      val when a hash of its path below PATH falls in the lowest tenth, so adding pictures moves no
      other; if none does, the one with the lowest hash is val. Where all lie in subfolders (of the
      splits), these are their classes, in order of name.
    ``digits``
      1,797 handwritten digits of 8 x 8 in ten classes that come inside scikit-learn; every fifth is
      in val.
    ``synthetic``
      64 drawn pictures of 96 x 96 a split, for tests.
    ``parquet:PATTERN`` or ``parquet:TRAIN_PATTERN|VAL_PATTERN``
      Parquet files as the Hugging Face hub keeps them, sorted by path, see `parquet`: a column
      ``image`` of encoded files, binary or a struct with ``bytes``, and maybe a column ``label``.
      Patterns and splits are those of ``webdataset``.

    Videos:

    ``motion``
      A camera pans, zooms and turns over these photographs, see `motion`: 128
      videos of 96 frames over those to train on, 24 over those to validate on.
    ``clips:PATH``
      Every video file below PATH, divided as the pictures of a folder; or one file, undivided.

    Either, told apart by what is stored:

    ``tfds:NAME`` or ``tfds:NAME@DATA_DIR``
      A dataset that tensorflow-datasets has prepared as array_record files; val is its
      ``validation`` split if it has one, else ``test``. Of one with both, pictures are taken. A
      feature that is a class label gives classes.
    ``array_record:GLOB`` or ``array_record:TRAIN_GLOB|VAL_GLOB``
      Files whose records are encoded pictures or video files, sorted by path. With one glob every
      tenth record, from the first, is val.
    ``webdataset:PATTERN`` or ``webdataset:TRAIN_PATTERN|VAL_PATTERN``
      Tar files, sorted by path, see `webdataset`; a pattern has globs and ranges such as
      ``shards/train-{000..099}.tar``. Pictures and videos are told by the endings of their names;
      where there are both, pictures are taken. With one pattern every tenth record, from the first,
      is val. What a ``.cls`` beside a picture, or "label" in a ``.json``, says is its class.

    Of the user's own, see docs/extending/data_source.md:

    ``module:attribute`` or ``module:attribute(key=value)``
      What a function or class of an importable module gives for the split.

    Args:
      spec: one of the above.
      split: 'train' or 'val'.
      divide: false if the other split comes from another spec: then a folder without split
        folders, or a lone glob, is used whole instead of being divided.

    Raises:
      UserError: the spec or split is unknown, or what it names is missing or holds none.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if not spec:
        raise UserError("data.source is empty: set it, for instance to folder:PATH")
    scheme, colon, rest = spec.partition(":")
    if scheme in _NAMED:
        if colon:
            raise UserError(
                f"data source {spec!r}: {scheme} takes nothing after it, write {scheme!r}"
            )
        return _NAMED[scheme](split)
    if scheme in _PLACED:
        if not rest:
            raise UserError(
                f"data source {spec!r} names no place: write {scheme}:... after the colon"
            )
        return _PLACED[scheme](rest, split, divide)
    if os.path.isdir(os.path.expanduser(spec)):
        raise UserError(
            f"unknown data source {spec!r}: for a folder of pictures write 'folder:{spec}', "
            f"for one of videos 'clips:{spec}'"
        )
    known = [*_NAMED, *_PLACED]
    near = difflib.get_close_matches(scheme.lower(), known, n=1, cutoff=0)[0]
    unknown = f"unknown data source {spec!r}: did you mean {near!r}? (known: {', '.join(known)})"
    if is_own(spec):
        return make_own_source(spec, split, unknown=unknown)
    raise UserError(unknown)


def open_source(config: DataConfig, split: str) -> Source:
    """The records of ``split``, 'train' or 'val'.

    With a ``val_source`` of its own for validation, neither source is divided: see ``divide`` of
    `make_source`. For 'train' the ``image_source`` is looked at too.

    Raises:
      UserError: a spec is wrong or there are no records.
    """
    val_source = config.val_source or config.source
    place = same_place(val_source)
    if split == "val":
        divide = place in (same_place(config.source), same_place(config.image_source))
        return _open(val_source, split, divide=divide)
    if config.image_source:
        open_image_source(config)
    return _open(config.source, split, divide=place == same_place(config.source))


def open_image_source(config: DataConfig) -> Source:
    """The train records of ``image_source``.

    It is always divided, so that a later evaluation on its val split uses unseen pictures.

    Raises:
      UserError: the spec is wrong or there are no records.
    """
    return _open(config.image_source, "train", divide=True)


def _open(spec: str, split: str, *, divide: bool) -> Source:
    source = make_source(spec, split, divide=divide)
    if not len(source):
        raise UserError(f"{source.name} is empty: choose another source for {split}")
    return source
