"""``encode`` of a folder: each picture and video becomes a .bsq file, what is done is skipped."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, NamedTuple

from bsq_jax.cli import folders
from bsq_jax.cli.encode_file import content_of, encoded, keep_model, load_codec
from bsq_jax.cli.folders import Job, Made
from bsq_jax.cli.outputs import size_and_rate
from bsq_jax.core.errors import UserError

if TYPE_CHECKING:
    from bsq_jax.coding.codec import Codec
    from bsq_jax.coding.coding_choice import Settings
    from bsq_jax.coding.container import Header


def encode_folder(flags: argparse.Namespace) -> int:
    """Encodes what is in a folder."""
    from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
    from bsq_jax.data.sources.folders import IMAGE_EXTENSIONS

    root, target = pathlib.Path(flags.input), folders.output_folder(flags.output, flags.input)
    found = folders.find(root, IMAGE_EXTENSIONS | VIDEO_EXTENSIONS, target)
    found.others.pop(".bsq", None)  # earlier results
    others = found.passed_over("neither picture nor video")
    if not found.names and not found.problems:
        raise UserError(f"{root} holds no picture or video{others and f' ({others})'}")
    results = folders.results_of(dict.fromkeys(found.names, ".bsq"))
    jobs = [Job(str(root / name), root / name, target / results[name]) for name in found.names]
    codec = load_codec(flags)
    there = _results_there(jobs, codec, flags)
    keep_model(codec, flags)

    def make(job: Job) -> Made:
        return _made(job, there.get(job.target), codec, flags)

    outcome = folders.run(jobs, make, found.problems, quiet=flags.quiet)
    if not flags.quiet:
        for line in _summary(jobs, outcome, target, others):
            folders.tell(line)
    return outcome.status


class _There(NamedTuple):
    """A result that is there already, whole and coded as it would be now."""

    header: Header
    changed: int  # nanoseconds


def _results_there(
    jobs: list[Job], codec: Codec, flags: argparse.Namespace
) -> dict[pathlib.Path, _There]:
    """The results of earlier commands that may be kept, by path.

    Raises:
      UserError: there are results of other models or settings, and they are to stay.
    """
    from bsq_jax.coding.container import DamagedFile, read_whole

    there, foreign = {}, []
    settings = codec.settings(flags.mode, flags.bits, flags.overlap, flags.tile, flags.memory)
    fingerprint = codec.fingerprint(flags.mode)
    for job in jobs:
        if not job.target.exists():
            continue
        try:
            header = read_whole(job.target)[0]
        except DamagedFile:
            continue  # coded again
        except (UserError, OSError):
            foreign.append((job.target, "no .bsq file"))
            continue
        if _coded_so(header, codec, settings):
            there[job.target] = _There(header, job.target.stat().st_mtime_ns)
        elif header.fingerprint == fingerprint:
            foreign.append((job.target, "coded with other settings"))
        else:
            foreign.append((job.target, f"coded by {header.origin or 'another model'}"))
    if foreign and not flags.force:
        path, why = foreign[0]
        files = f"{len(foreign)} files" if len(foreign) > 1 else "a file"
        mine = codec.origin(flags.mode) or codec.name
        raise UserError(
            f"{flags.output} holds {files} that would be replaced, such as {path} ({why}; now it "
            f"would be {mine}): to go on, give what coded them (--model, --step, settings); or "
            "choose another folder, or add --force to code them again"
        )
    return there


def _coded_so(header: Header, codec: Codec, settings: Settings) -> bool:
    """Whether a file is what this codec makes now, with these settings."""
    try:
        coding = codec.coding(settings, header.height, header.width, clip=header.frames > 1)
    except UserError:  # frames of this size cannot be coded so, which is said when its turn comes
        return False
    return coding.made(header)


def _made(job: Job, there: _There | None, codec: Codec, flags: argparse.Namespace) -> Made:
    """The .bsq file of a picture or video, unless that is there."""
    if (
        there is not None
        and there.changed >= job.source.stat().st_mtime_ns
        and (not there.header.is_video or there.header.frames == _frames(job, flags))
    ):
        return Made(None)
    content = content_of(str(job.source), job.name)
    data, notes = encoded(job.name, content, codec, flags)
    return Made(data, notes=notes)


def _frames(job: Job, flags: argparse.Namespace) -> int:
    """How many frames of a video are to be coded."""
    from bsq_jax.coding.frame_source import open_frames

    with open_frames(job.name, content_of(str(job.source), job.name), flags.frames) as frames:
        return frames.count


def _summary(
    jobs: list[Job], outcome: folders.Outcome, target: pathlib.Path, others: str
) -> list[str]:
    """What the folder holds now, and what it does not."""
    from bsq_jax.coding.container import read_header

    size = pixels = count = 0
    for job in jobs:
        try:
            with job.target.open("rb") as file:
                header = read_header(file, str(job.target))
            size += job.target.stat().st_size
        except (UserError, OSError):
            continue  # told before
        pixels += header.pixels
        count += 1
    lines = []
    if count:
        kept = f", of which {outcome.kept} were done before" if outcome.kept else ""
        lines.append(
            f"{target}: {count} file{'s' * (count > 1)}, {size_and_rate(size, pixels)}{kept}"
        )
    if outcome.failed:
        lines.append(f"not coded: {outcome.failed}, each named above")
    return [*lines, *filter(None, [others])]
