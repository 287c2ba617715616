"""Folders of files that a command works on one by one: what is found, what each becomes, the end.

Each result is written whole or not at all. A file that cannot be read is named in a line and passed
over, and Ctrl-C leaves the results that are whole, so that the same command goes on.
"""

from __future__ import annotations

import collections
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bsq_jax.cli.outputs import write_output
from bsq_jax.core.errors import MISTAKE, Interrupted, UserError
from bsq_jax.core.paths import local_path


class Found(NamedTuple):
    """The files below a folder.

    Attributes:
      names: paths below the folder of those that a command takes, sorted.
      others: how many have another ending, by ending.
      problems: a line for each folder that cannot be listed, and each link that leads nowhere.
    """

    names: list[str]
    others: collections.Counter[str]
    problems: list[str]

    def passed_over(self, why: str) -> str:
        """Such as ``passed over, no picture: 3 files (2 .txt, 1 .heic)``; empty without any."""
        if not (total := self.others.total()):
            return ""
        kinds = [f"{count} {ending or 'without'}" for ending, count in self.others.most_common(6)]
        kinds += ["..."] * (len(self.others) > len(kinds))
        return f"passed over, {why}: {total} file{'s' * (total > 1)} ({', '.join(kinds)})"


def find(root: pathlib.Path, endings: Iterable[str], leave_out: pathlib.Path) -> Found:
    """Searches a folder to any depth; links are followed, hidden files and folders left out.

    Args:
      root: the folder.
      endings: of the names that count, such as ``.png``.
      leave_out: a folder that is not searched where it lies below `root`: that of the results.
    """
    found, left_out = Found([], collections.Counter(), []), os.path.realpath(leave_out)
    wanted = frozenset(endings)

    def search(folder: pathlib.Path, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in above or (above and real == left_out):  # a link back up the tree, or the results
            return
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            found.problems.append(f"{folder} cannot be listed: {error.strerror}")
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # such as a link to itself
                found.problems.append(f"{folder / entry.name}: {error.strerror}")
                continue
            if is_folder:
                search(folder / entry.name, (*above, real))
            elif (ending := os.path.splitext(entry.name)[1].lower()) in wanted:
                found.names.append((folder / entry.name).relative_to(root).as_posix())
            else:
                found.others[ending] += 1

    search(root, ())
    found.names.sort()
    return found


def results_of(endings: Mapping[str, str]) -> dict[str, str]:
    """What each file of a folder becomes: ``photo.bsq`` of ``photo.jpg``.

    Of files that would become one, each keeps its own ending: ``photo.jpg.bsq`` and
    ``photo.png.bsq``. Names that differ in upper and lower case alone count as one, as some file
    systems take them.

    Args:
      endings: of the result, such as ``.bsq``, by path of the file.
    """
    made = {name: os.path.splitext(name)[0] + ending for name, ending in endings.items()}
    whole: set[str] = set()  # that keep their ending
    while clashing := [name for name in _clashing(made) if name not in whole]:
        whole.update(clashing)
        made.update({name: name + endings[name] for name in clashing})
    taken: set[str] = set()
    for name in sorted(made):  # of a.jpg and A.jpg
        stem, ending = os.path.splitext(made[name])
        number = 1
        while made[name].casefold() in taken:
            number += 1
            made[name] = f"{stem}.{number}{ending}"
        taken.add(made[name].casefold())
    return made


def _clashing(made: Mapping[str, str]) -> list[str]:
    counts = collections.Counter(result.casefold() for result in made.values())
    return [name for name, result in made.items() if counts[result.casefold()] > 1]


def output_folder(path: str, source: str) -> pathlib.Path:
    """Checks the folder of the results; it is made with the first of them.

    Raises:
      UserError: it is no folder.
    """
    if path == "-":
        raise UserError(f"{source} is a folder: give a folder for the results in place of -")
    folder = local_path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{source} is a folder and {folder} is a file: give a folder")
    if not folder.exists() and folder.suffix.lower() == ".bsq":
        raise UserError(f"{source} is a folder: give a folder for the results, not {folder}")
    return folder


class Job(NamedTuple):
    """One file of a folder.

    Attributes:
      name: of the file, its path as messages name it.
      source: the file.
      target: the result.
    """

    name: str
    source: pathlib.Path
    target: pathlib.Path


class Made(NamedTuple):
    """What a file becomes.

    Attributes:
      data: content of the result; None: the result that is there is kept.
      problem: what is wrong with it; empty if nothing is.
      notes: lines on what the result leaves out.
    """

    data: bytes | None
    problem: str = ""
    notes: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What came of the files of a folder.

    Attributes:
      made: how many results were written.
      kept: how many were there before.
      failed: how many files have no whole result.
    """

    made: int
    kept: int
    failed: int

    @property
    def status(self) -> int:
        """The exit status."""
        return MISTAKE if self.failed else 0


def run(
    jobs: Sequence[Job], make: Callable[[Job], Made], problems: Iterable[str], *, quiet: bool
) -> Outcome:
    """Makes and writes the results one after the other, with progress; names what fails.

    Args:
      jobs: the files.
      make: makes the result of one; its ``UserError``, ``BrokenRecord`` and ``OSError`` are told.
      problems: lines on files that are passed over.
      quiet: no progress and no notes.

    Raises:
      UserError: a result cannot be written.
      Interrupted: Ctrl-C.
    """
    from bsq_jax.core.progress import progress
    from bsq_jax.data.records import BrokenRecord

    made = kept = failed = 0
    notes: dict[str, list[str]] = {}
    for problem in problems:
        failed += 1
        tell(problem)
    total = len(jobs) + failed
    writing: tuple[Job, tuple[int, ...]] | None = None  # and what was there before
    try:
        with progress(len(jobs), "files", quiet=quiet) as advance:
            for job in advance(jobs, lambda _: 1):
                try:
                    result = make(job)
                except (UserError, BrokenRecord) as error:
                    failed += 1
                    tell(_named(job, str(error)))
                    continue
                except OSError as error:
                    failed += 1
                    tell(_named(job, error.strerror or str(error)))
                    continue
                if result.data is not None:
                    writing = job, _state(job.target)
                    _write(job, result.data, f"{made + kept} of {total} files are done")
                for note in result.notes:
                    notes.setdefault(note, []).append(job.name)
                writing = None
                made += result.data is not None and not result.problem
                kept += result.data is None and not result.problem
                if result.problem:
                    failed += 1
                    tell(_named(job, result.problem))
    except KeyboardInterrupt as error:
        if writing is not None:  # the signal may come when the file is in its place already
            made += _state(writing[0].target) != writing[1]
        raise Interrupted(
            f"{made + kept} of {total} files are done and kept, and the same command goes on"
        ) from error
    for line in () if quiet else _lines(notes):
        tell(line)
    return Outcome(made, kept, failed)


def _named(job: Job, problem: str) -> str:
    return problem if problem.startswith((job.name, str(job.target))) else f"{job.name}: {problem}"


def _state(path: pathlib.Path) -> tuple[int, ...]:
    """Tells one version of a file from another; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _write(job: Job, data: bytes, done: str) -> None:
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_output(str(job.target), data)
    except OSError as error:
        raise UserError(
            f"cannot write {job.target} ({error.strerror}): {done}; make room or take another "
            "folder, and the same command goes on"
        ) from error


def _lines(notes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line for each note."""
    for note, names in notes.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {note}"


def tell(line: str) -> None:
    """Says a line on standard error above a progress bar that may be there."""
    import tqdm

    tqdm.tqdm.write(line, file=sys.stderr)
