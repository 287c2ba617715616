"""What runs on mixed sizes have besides: how examples of a step divide, and lines of the log."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_shards, gather_strings
from bsq_jax.data.mixed_sizes import TrainSizes, batch_shapes
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.size_buckets import choices, name
from bsq_jax.data.size_schedule import batch_of_size


def step_multiple(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """What the examples of a step on mixed sizes are a multiple of; 1 where there is one size."""
    return batch_shards(mesh) * config.train.accumulate if config.data.sizes else 1


def run_lines(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    data: DataConfig,
    sizes: TrainSizes | None,
    lengths: Sequence[int],
) -> list[str]:
    """What the log says when training begins: sizes, and the number of programs."""
    programs = _programs(data, sizes, lengths)
    if sizes is None:
        return programs
    multiple = step_multiple(config, mesh)
    return [*size_lines(data, sizes, config.train.batch_size, multiple), *programs]


def check_same_sizes(sizes: TrainSizes) -> None:
    """Compares over the processes which size each training record has (a collective call).

    Raises:
      UserError: one could not read what another could; on all processes.
    """
    digests = [sized.digest() for sized in sizes.sources]
    if len(gather_strings([" ".join(digests)])) > 1:
        raise UserError(
            "the processes have read different sizes of the training records: some files cannot "
            "be read by all of them, give all the same files on storage that they share"
        )


def _programs(data: DataConfig, sizes: TrainSizes | None, lengths: Sequence[int]) -> list[str]:
    """How many programs training compiles, where that is more than one."""
    if sizes is None:
        if len(lengths) == 1:
            return []
        return [f"training programs: {len(lengths)}, for clips of {_listed(lengths)} frames"]
    shapes = batch_shapes(data, sizes)
    frames = sorted({shape[0] for shape in shapes})
    count = len({shape[1:] for shape in shapes})
    clips = f", clips of {_listed(frames)} frames" if frames != [1] else ""
    return [f"training programs: {len(shapes)} ({count} size{'s' * (count > 1)}{clips})"]


def size_lines(data: DataConfig, sizes: TrainSizes, batch_size: int, multiple: int) -> list[str]:
    """The sizes of a run with their records and the examples of a step; what is odd about them.

    Args:
      data: the settings.
      sizes: the records by size.
      batch_size: examples of a step at the size that the model is built for.
      multiple: see `step_multiple`.
    """
    lines, unlike = [], []
    for sized in sizes.sources:
        parts = []
        members = {own: len(records) for own, records in sized.members().items()}
        for number, size in enumerate(sized.sizes):
            seen = [own for own in members if number in choices(own, sized.sizes)]
            if not seen:
                continue
            count = batch_of_size(size, batch_size, data.crop, multiple)
            records = sum(members[own] for own in seen)
            parts.append(f"{name(size)} ({records:,d} records, {count} a step)")
            fewest = min(members[own] for own in seen)
            if fewest < count:
                unlike.append(
                    f"{name(size)}: {count} examples a step, and some of these steps have the same "
                    f"{fewest} record{'s' * (fewest > 1)} over and over; leave the size out if "
                    "these few pictures do not matter"
                )
            times = count * size[0] * size[1] / (batch_size * data.crop[0] * data.crop[1])
            if times > 1:
                unlike.append(
                    f"{name(size)}: {count} examples, the fewest that divide over devices and "
                    f"train.accumulate, have {times:.2g} times the tokens of train.batch_size"
                )
        lines.append(f"sizes of {sized.source.name}: {', '.join(parts)}")
    return [*lines, *dict.fromkeys(unlike)]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
