r"""Generates pictures or clips with a masked language model.

Examples:
  bsq-jax generate --model runs/digits_lm --num 16 --classes 1,2 --out samples/
  bsq-jax generate --model runs/digits_lm --num 5000 --npz samples.npz --quiet
  bsq-jax generate --model runs/digits_lm --given picture.png --region 0,0,32,16 \
      --classes 3 --num 8 --out inpainted/

The folder gets a picture (or an mp4 file) for each sample, grid.png and samples.json, which says
how they were made. A sample depends on the seed, its number and its class alone. After Ctrl-C the
same command goes on after the last picture in the folder.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsq_jax.cli.command import Command
from bsq_jax.cli.inputs import add_model, existing_file, model_path
from bsq_jax.cli.outputs import check_output_file, check_output_folder, say, write_output
from bsq_jax.core.errors import Interrupted, UserError

_GRID = 64  # samples in the grid, at most
_DESCRIPTION = "samples.json"
_UNFINISHED = "samples.unfinished.json"  # in its place until all samples are there
_SAMPLING = ("steps", "schedule", "order", "temperature", "noise", "guidance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``generate``."""
    add_model(parser, starter=False)
    parser.add_argument("--num", type=int, default=16, help="how many samples (16)")
    parser.add_argument("--classes", help="numbers to take turns at, such as 1,2; or none")
    parser.add_argument("--out", help="folder for the pictures, to be made")
    parser.add_argument("--npz", help="file for all samples as arr_0, and their classes as arr_1")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other samples (0)")
    parser.add_argument("--frames", type=int, help="length of clips; default: that of the model")
    parser.add_argument("--fps", type=int, default=8, help="frames a second of clips (8)")
    how = parser.add_argument_group("how words are chosen (by default as the config says)")
    how.add_argument("--steps", type=int, help="of decoding")
    how.add_argument("--schedule", help="cosine, linear, square, cubic, sqrt or arccos")
    how.add_argument("--order", help="confidence or random")
    how.add_argument("--temperature", type=float, help="of the words; 0 takes the likeliest")
    how.add_argument("--noise", type=float, help="on the confidence in the first step")
    how.add_argument("--guidance", type=float, help="classifier-free guidance; 0: none")
    part = parser.add_argument_group("parts of a picture anew")
    part.add_argument("--given", help="a picture; all tokens outside the region are kept")
    part.add_argument("--region", help="TOP,LEFT,HEIGHT,WIDTH in pixels of the model's picture")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(flags: argparse.Namespace) -> int:
    """Generates, and writes what the flags ask for."""
    path = model_path(flags, starter=False)
    folder = _checked_folder(flags)
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.inference.generator import Generator
    from bsq_jax.media import videos

    enable_compilation_cache()
    generator = Generator.load(path)
    clips = generator.frames > 1
    if clips and folder:
        videos.check_encoder()
    labels = generator.labels(flags.num, _classes(flags))
    changes = {name: getattr(flags, name) for name in _SAMPLING if getattr(flags, name) is not None}
    described = {
        "model": str(path),
        "weights": generator.origin,
        "num": flags.num,
        "frames": flags.frames,
        "seed": flags.seed,
        "sampling": vars(generator.sampling(**changes)),
        "classes": labels.tolist(),
    }
    if flags.given:
        described |= {"given": flags.given, "region": flags.region}
    made = _samples(generator, labels.tolist(), changes, flags)  # refuses what cannot be
    done = _begin(folder, described, flags, clips=clips) if folder else []
    if done:
        made = _samples(generator, labels.tolist(), changes, flags, first=len(done))
    samples = _write_each(made, folder, flags, done, clips=clips)
    if flags.npz:
        _write_npz(flags.npz, samples, labels if generator.classes else None)
    if folder:
        _write_grid(folder / "grid.png", samples)
        (folder / _UNFINISHED).replace(folder / _DESCRIPTION)
    what = "clips" if clips else "pictures"
    places = [str(place) for place in (folder and folder / "grid.png", flags.npz) if place]
    print(f"{flags.num} {what}: {', '.join(places)}")
    return 0


def _begin(
    folder: pathlib.Path, described: dict[str, Any], flags: argparse.Namespace, *, clips: bool
) -> list[pathlib.Path]:
    """Notes in the folder what will be made; the files that the same command has finished there.

    Raises:
      UserError: another command has left its samples unfinished there.
    """
    from bsq_jax.core.files import write_atomic

    mark = folder / _UNFINISHED
    text = (json.dumps(described, indent=2) + "\n").encode()
    done: list[pathlib.Path] = []
    if mark.exists() and not flags.force:
        if mark.read_bytes() != text:
            raise UserError(
                f"{folder} holds samples of another command, which was interrupted (see "
                f"{_UNFINISHED}): choose another folder, or add --force"
            )
        # Clips as arrays are not what their mp4 files hold; parts of a picture are made at once.
        if not flags.given and not (clips and flags.npz):
            done = list(itertools.takewhile(pathlib.Path.exists, _files(folder, flags, clips)))
    elif not flags.force and (there := [p for p in _files(folder, flags, clips) if p.exists()]):
        raise UserError(
            f"{there[0]} exists already: choose another folder, or add --force to replace it"
        )
    if not done:  # what is there from before is not taken for these samples later
        for path in (folder / _DESCRIPTION, *_files(folder, flags, clips)):
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(mark, text)
    if done:
        say(f"{len(done)} of {flags.num} are in {folder}: going on after them")
    return done


def _files(folder: pathlib.Path, flags: argparse.Namespace, clips: bool) -> list[pathlib.Path]:
    """Where each sample goes."""
    digits = max(5, len(str(flags.num - 1)))
    ending = "mp4" if clips else "png"
    return [folder / f"{number:0{digits}d}.{ending}" for number in range(flags.num)]


def _checked_folder(flags: argparse.Namespace) -> pathlib.Path | None:
    """The folder for pictures, if one is asked for; flags and places are checked before work."""
    if not flags.out and not flags.npz:
        raise UserError("where to? Give --out FOLDER or --npz FILE.npz")
    if bool(flags.given) != bool(flags.region):
        raise UserError("--given PICTURE and --region TOP,LEFT,HEIGHT,WIDTH go together")
    if flags.num < 1:
        raise UserError(f"--num {flags.num}: ask for 1 or more")
    if flags.npz:
        check_output_file(flags.npz, force=flags.force, suffix=".npz")
    return check_output_folder(flags.out, [_DESCRIPTION], force=flags.force) if flags.out else None


def _classes(flags: argparse.Namespace) -> int | list[int] | None:
    """What ``--classes`` says: -1 for none; by default all in turn, and none for a given picture.

    Raises:
      UserError: it is no list of numbers.
    """
    if flags.classes is None:
        return -1 if flags.given else None
    if flags.classes.strip().lower() == "none":
        return -1
    try:
        return [int(part) for part in flags.classes.split(",")]
    except ValueError:
        raise UserError(f"--classes {flags.classes}: give numbers such as 1,2, or none") from None


def _samples(
    generator: Any,
    classes: list[int],
    changes: Mapping[str, Any],
    flags: argparse.Namespace,
    first: int = 0,
) -> Iterator[Any]:
    """Generated pictures or clips from number `first` on, uint8, in parts."""
    import numpy as np

    if not flags.given:
        return generator.samples(
            flags.num, classes=classes, frames=flags.frames, seed=flags.seed, first=first, **changes
        )
    if generator.frames > 1:
        raise UserError("--given takes a picture, and this model makes clips")
    shape = generator.tokenizer.shape
    given = _given(flags.given, (shape.image_height, shape.image_width))
    whole = np.broadcast_to(given, (flags.num, *given.shape))
    keep = _kept_tokens(flags.region, shape)
    return iter([generator.inpaint(whole, keep, classes=classes, seed=flags.seed, **changes)])


def _given(path: str, size: tuple[int, int]) -> Any:
    """A picture's middle in the model's size, uint8 ``[height, width, 3]``."""
    from bsq_jax.data import transforms
    from bsq_jax.data.reader import load_resized
    from bsq_jax.data.records import BrokenRecord, Record

    file = existing_file(path)
    try:
        record = Record(str(file), file.read_bytes())
        image = load_resized(record, max(size), "lanczos", draft=False)
    except BrokenRecord as error:
        raise UserError(f"{file} is no picture that can be read: {error}") from None
    return transforms.center_crop(image, size)


def _kept_tokens(region: str, shape: Any) -> Any:
    """Which tokens lie outside a region, bool ``[rows, columns]``."""
    import numpy as np

    try:
        top, left, height, width = (int(part) for part in region.split(","))
    except ValueError:
        raise UserError(f"--region {region}: give TOP,LEFT,HEIGHT,WIDTH in pixels") from None
    inside = (
        min(top, left) >= 0
        and top + height <= shape.image_height
        and left + width <= shape.image_width
    )
    if min(height, width) < 1 or not inside:
        raise UserError(
            f"--region {region} does not lie in the model's picture of "
            f"{shape.image_height}x{shape.image_width}"
        )
    high, wide = shape.patch
    keep = np.ones(shape.grid, np.bool_)
    rows = slice(top // high, -(-(top + height) // high))
    keep[rows, left // wide : -(-(left + width) // wide)] = False
    return keep


def _write_each(
    made: Iterator[Any],
    folder: pathlib.Path | None,
    flags: argparse.Namespace,
    done: Sequence[pathlib.Path],
    *,
    clips: bool,
) -> Any:
    """Writes each sample as a file, if there is a folder; `done` are those of the first ones.

    Returns:
      All samples where they are to be written as arrays, else those of the grid.

    Raises:
      Interrupted: Ctrl-C; the message says which samples are there.
    """
    import numpy as np

    from bsq_jax.core.progress import progress
    from bsq_jax.media import pictures, videos

    files = _files(folder, flags, clips) if folder else []
    kept = [_read(path, clips)[None] for path in (done if flags.npz else done[:_GRID])]
    count = first = len(done)
    try:
        with progress(flags.num - first, "samples", quiet=flags.quiet) as advance:
            for part in advance(made, len):
                for path, sample in zip(files[first:], part, strict=False):
                    if clips:
                        videos.write_mp4(path, sample, flags.fps)
                    else:
                        pictures.save_png(path, sample)
                    count += 1
                kept.append(part if flags.npz else part[: max(_GRID - first, 0)])
                first += len(part)
    except KeyboardInterrupt as error:
        raise Interrupted(_what_is_kept(folder, count, flags, clips)) from error
    return np.concatenate(kept)


def _what_is_kept(
    folder: pathlib.Path | None, count: int, flags: argparse.Namespace, clips: bool
) -> str:
    """What Ctrl-C leaves of the samples."""
    what = "clips" if clips else "pictures"
    if folder is None:
        return f"nothing was written; with --out FOLDER the {what} that are finished are kept"
    if flags.given:
        goes_on = "the same command makes them again"
    elif clips and flags.npz:
        goes_on = "the same command makes them again, without --npz it goes on"
    else:
        goes_on = f"the same command{' without --force' * flags.force} goes on"
    return f"{count} of {flags.num} {what} are in {folder}; {goes_on}"


def _read(path: pathlib.Path, clips: bool) -> Any:
    """A sample that was written before, uint8."""
    import numpy as np

    from bsq_jax.data.decoding.record_frames import open_record
    from bsq_jax.data.records import Record

    with open_record(Record(path.name, path if clips else path.read_bytes())) as footage:
        frames = [render() for _, render in footage.frames(range(len(footage)))]
    return np.stack(frames) if clips else frames[0]


def _write_grid(path: pathlib.Path, samples: Any) -> None:
    """The first samples in one picture; of clips all frames."""
    from bsq_jax.evaluation.masked_lm import samples_grid
    from bsq_jax.media import pictures

    some = samples[:_GRID]
    sheet = samples_grid(some if some.ndim == 5 else some[:, None], (), len(some))
    pictures.save_png(path, sheet)


def _write_npz(path: str, samples: Any, labels: Any) -> None:
    """The layout of the samples of guided-diffusion, which outside suites read."""
    import numpy as np

    arrays = [samples] if labels is None else [samples, labels.astype(np.int64)]
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    write_output(path, buffer.getvalue())


COMMAND = Command(
    "generate pictures or clips with a masked language model",
    __doc__,
    add_arguments,
    run,
    interrupted="no sample was begun; the same command does",
)
