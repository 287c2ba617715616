"""``decode`` of a folder: each .bsq file becomes a picture or a video, what is done is skipped."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Self

from bsq_jax.cli import folders
from bsq_jax.cli.decode_file import decoded, is_decoded_from, notes
from bsq_jax.cli.folders import Job, Made
from bsq_jax.cli.inputs import model_path
from bsq_jax.core.errors import UserError

if TYPE_CHECKING:
    from bsq_jax.coding.codec import Codec
    from bsq_jax.coding.container import Header, Origin


def decode_folder(flags: argparse.Namespace) -> int:
    """Decodes what is in a folder."""
    from bsq_jax.coding.codec import Codec
    from bsq_jax.core.compilation_cache import enable_compilation_cache

    root, target = pathlib.Path(flags.input), folders.output_folder(flags.output, flags.input)
    found = folders.find(root, {".bsq"}, target)
    others = found.passed_over("no .bsq file")
    if not found.names and not found.problems:
        raise UserError(f"{root} holds no .bsq file{others and f' ({others})'}")
    headers, problems = _headers(root, found.names)
    video = f".{flags.video or 'mkv'}"
    endings = {name: video if header.is_video else ".png" for name, header in headers.items()}
    results = folders.results_of(endings)
    jobs = [
        Job(str(root / name), root / name, target / results[name]) for name in _by_model(headers)
    ]
    there = frozenset() if flags.force else _results_there(jobs, flags.output)
    path = model_path(flags)
    enable_compilation_cache()
    codec = Codec.load(path)
    unopened: dict[_Model, str] = {}  # the first file of each model that is not there

    def make(job: Job) -> Made:
        return _made(job, job in there, codec, unopened, flags)

    outcome = folders.run(jobs, make, [*found.problems, *problems], quiet=flags.quiet)
    if not flags.quiet:
        for line in _summary(target, outcome, others):
            folders.tell(line)
    return outcome.status


def _headers(root: pathlib.Path, names: list[str]) -> tuple[dict[str, Header], list[str]]:
    """What each file says of itself; and lines on those that say nothing."""
    from bsq_jax.coding.container import read_header

    headers, problems = {}, []
    for name in names:
        path = root / name
        try:
            with path.open("rb") as file:
                headers[name] = read_header(file, str(path))
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
    return headers, problems


class _Model(NamedTuple):
    """What a file says of the model that coded it."""

    mode: str
    fingerprint: bytes
    origin: Origin | None

    @classmethod
    def of(cls, header: Header) -> Self:
        return cls(header.mode, header.fingerprint, header.origin)


def _by_model(headers: Mapping[str, Header]) -> list[str]:
    """The files, those of a model together: the checkpoints of a run are loaded one at a time."""
    models: dict[_Model, list[str]] = {}
    for name, header in headers.items():
        models.setdefault(_Model.of(header), []).append(name)
    return [name for names in models.values() for name in names]


def _results_there(jobs: list[Job], output: str) -> frozenset[Job]:
    """The files that are decoded already, as their pictures and videos say in a comment.

    Raises:
      UserError: there are others in their place, such as the originals.
    """
    there: list[Job] = []
    foreign: list[Job] = []
    for job in jobs:
        if not job.target.exists():
            continue
        try:
            data = job.source.read_bytes()
        except OSError:
            continue  # told when its turn comes
        (there if is_decoded_from(data, job.target) else foreign).append(job)
    if foreign:
        files = f"{len(foreign)} files that are" if len(foreign) > 1 else "a file that is"
        raise UserError(
            f"{output} holds {files} not decoded from the .bsq file of that name, such as "
            f"{foreign[0].target}: choose another folder, or add --force to overwrite"
        )
    return frozenset(there)


def _made(
    job: Job, there: bool, codec: Codec, unopened: dict[_Model, str], flags: argparse.Namespace
) -> Made:
    """The picture or video of a .bsq file, unless that is there."""
    from bsq_jax.coding.container import DamagedFile, read_header, read_whole
    from bsq_jax.coding.earlier_steps import MissingModel

    frames_before = f"; the frames before are in {job.target}"
    if there:
        try:
            read_whole(job.source)
        except DamagedFile as error:
            return Made(None, f"{error}{frames_before}")
        return Made(None)
    with job.source.open("rb") as file:
        header = read_header(file, job.name)
    if first := unopened.get(_Model.of(header)):
        raise UserError(f"{job.name} was coded by the same model as {first}")
    try:
        codec.for_file(header, job.name)
    except MissingModel:
        unopened[_Model.of(header)] = job.name
        raise
    suffix = job.target.suffix
    content, problem = decoded(codec, job.source.read_bytes(), job.name, suffix, quiet=flags.quiet)
    return Made(content, problem and problem + frames_before, tuple(notes(header, suffix)))


def _summary(target: pathlib.Path, outcome: folders.Outcome, others: str) -> list[str]:
    """What was done, and what was not."""
    whole = outcome.made + outcome.kept
    kept = f", of which {outcome.kept} were done before" if outcome.kept else ""
    lines = [f"{target}: {whole} file{'s' * (whole != 1)}{kept}"]
    if outcome.failed:
        lines.append(f"not whole: {outcome.failed}, each named above")
    return [*lines, *filter(None, [others])]
