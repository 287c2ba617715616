r"""Generates pictures or clips with a masked language model.

::

    python -m bsq_jax generate --model runs/digits_lm --num 16 --classes 1,2 --out samples/
    python -m bsq_jax generate --model runs/digits_lm --num 5000 --npz samples.npz --quiet
    python -m bsq_jax generate --model runs/digits_lm --given picture.png --region 0,0,32,16 \
        --classes 3 --num 8 --out inpainted/

The folder gets a picture (or an mp4 file) for each sample, ``grid.png`` and ``samples.json``, which
says how they were made. A sample depends on the seed, its number and its class alone.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_VARIABLE = "BSQ_JAX_MODEL"
_GRID = 64  # samples in the grid, at most


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the flags and generates; the exit status."""
    # Late, so that --help and a wrong flag answer at once.
    from bsq_jax.core.errors import UserError

    flags = _parser().parse_args(arguments)
    try:
        _generate(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or flags.out}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the pictures written so far are whole", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bsq_jax generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help=f"workdir or export; by default ${_VARIABLE}")
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
    parser.add_argument("--export", help="only write model and tokenizer, as one folder, there")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _generate(flags: argparse.Namespace) -> None:
    import numpy as np

    from bsq_jax.cli.progress import progress
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.errors import UserError
    from bsq_jax.evaluation.masked_lm import samples_grid
    from bsq_jax.inference.generator import Generator
    from bsq_jax.media import pictures, videos

    path = flags.model or os.environ.get(_VARIABLE)
    if not path:
        raise UserError(f"which model? Give --model WORKDIR_OR_EXPORT, or set {_VARIABLE}")
    if flags.export:
        _export(path, flags)
        return
    if not flags.out and not flags.npz:
        raise UserError("where to? Give --out FOLDER or --npz FILE.npz")
    if bool(flags.given) != bool(flags.region):
        raise UserError("--given PICTURE and --region TOP,LEFT,HEIGHT,WIDTH go together")
    if flags.num < 1:
        raise UserError(f"--num {flags.num}: ask for 1 or more")
    folder = pathlib.Path(flags.out) if flags.out else None
    if folder and (folder / "samples.json").exists() and not flags.force:
        raise UserError(f"{folder} holds samples: choose another folder, or add --force")
    _check_npz(flags)
    enable_compilation_cache()
    generator = Generator.load(path)
    names = ("steps", "schedule", "order", "temperature", "noise", "guidance")
    changes = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    classes = _classes(flags.classes)
    if flags.given:
        classes = -1 if classes is None else classes
    labels = generator.labels(flags.num, classes)
    clips = generator.frames > 1
    if clips and folder:
        videos.check_encoder()
    if flags.given:
        given, keep = _given(flags, generator)
        whole = np.broadcast_to(given, (flags.num, *given.shape))
        made: Iterator[Any] = iter(
            [generator.inpaint(whole, keep, classes=labels.tolist(), seed=flags.seed, **changes)]
        )
    else:
        made = generator.samples(
            flags.num, classes=labels.tolist(), frames=flags.frames, seed=flags.seed, **changes
        )
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    kept, first = [], 0
    digits = max(5, len(str(flags.num - 1)))
    with progress(flags.num, "samples", quiet=flags.quiet) as advance:
        for part in advance(made, len):
            for number, sample in enumerate(part if folder else (), first):
                assert folder is not None
                name = folder / f"{number:0{digits}d}"
                if clips:
                    videos.write_mp4(name.with_suffix(".mp4"), sample, flags.fps)
                else:
                    pictures.save_png(name.with_suffix(".png"), sample)
            first += len(part)
            kept.append(part if flags.npz else part[: max(_GRID - (first - len(part)), 0)])
    samples = np.concatenate(kept)
    if flags.npz:
        _write_npz(flags.npz, samples, labels if generator.classes else None)
    if folder:
        some = samples[:_GRID]
        sheet = samples_grid(some if some.ndim == 5 else some[:, None], (), len(some))
        pictures.save_png(folder / "grid.png", sheet)
        described = {
            "model": str(path),
            "num": flags.num,
            "seed": flags.seed,
            "sampling": vars(generator.sampling(**changes)),
            "classes": labels.tolist(),
        }
        if flags.given:
            described |= {"given": flags.given, "region": flags.region}
        (folder / "samples.json").write_text(json.dumps(described, indent=2) + "\n")
    what = "clips" if clips else "pictures"
    places = [str(place) for place in (folder and folder / "grid.png", flags.npz) if place]
    print(f"{flags.num} {what}: {', '.join(places)}")


def _export(path: str, flags: argparse.Namespace) -> None:
    from bsq_jax.core.errors import UserError
    from bsq_jax.inference.generator import Generator

    target = pathlib.Path(flags.export)
    if target.exists() and not flags.force:
        raise UserError(f"{target} exists: choose another folder, or add --force")
    Generator.load(path).save(target)
    print(f"{target}: masked language model and tokenizer")


def _classes(text: str | None) -> int | list[int] | None:
    from bsq_jax.core.errors import UserError

    if text is None:
        return None
    if text.strip().lower() == "none":
        return -1
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--classes {text}: give numbers such as 1,2, or none") from None


def _given(flags: argparse.Namespace, generator: Any) -> tuple[Any, Any]:
    """The picture, uint8 ``[height, width, 3]``, and which tokens of it are kept."""
    import numpy as np

    from bsq_jax.core.errors import UserError
    from bsq_jax.data import transforms
    from bsq_jax.data.records import BrokenRecord, Record

    if generator.frames > 1:
        raise UserError("--given takes a picture, and this model makes clips")
    shape = generator.tokenizer.shape
    size, patch = (shape.image_height, shape.image_width), shape.patch_size
    file = pathlib.Path(flags.given)
    if not file.is_file():
        raise UserError(f"{file} does not exist or is not a file")
    try:
        record = Record(str(file), file.read_bytes())
        image = transforms.load_resized(record, max(size), "lanczos", draft=False)
    except BrokenRecord as error:
        raise UserError(f"{file} is no picture that can be read: {error}") from None
    try:
        top, left, height, width = (int(part) for part in flags.region.split(","))
    except ValueError:
        raise UserError(f"--region {flags.region}: give TOP,LEFT,HEIGHT,WIDTH in pixels") from None
    inside = min(top, left) >= 0 and top + height <= size[0] and left + width <= size[1]
    if min(height, width) < 1 or not inside:
        raise UserError(
            f"--region {flags.region} does not lie in the model's picture of {size[0]}x{size[1]}"
        )
    keep = np.ones(shape.grid, np.bool_)
    rows = slice(top // patch, -(-(top + height) // patch))
    keep[rows, left // patch : -(-(left + width) // patch)] = False
    return transforms.center_crop(image, size), keep


def _check_npz(flags: argparse.Namespace) -> None:
    from bsq_jax.core.errors import UserError

    if not flags.npz:
        return
    target = pathlib.Path(flags.npz)
    if target.suffix != ".npz":
        raise UserError(f"--npz {target}: the name must end in .npz")
    if target.exists() and not flags.force:
        raise UserError(f"{target} exists: choose another name, or add --force")
    if not target.absolute().parent.is_dir():
        raise UserError(f"the folder of {target} does not exist: make it first")


def _write_npz(path: str, samples: Any, labels: Any) -> None:
    """The layout of the samples of guided-diffusion, which outside suites read."""
    import io

    import numpy as np

    from bsq_jax.core.files import write_atomic

    arrays = [samples] if labels is None else [samples, labels.astype(np.int64)]
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    write_atomic(pathlib.Path(path), buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
