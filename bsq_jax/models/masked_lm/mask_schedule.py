"""How many tokens are masked: the schedules of masked language models (MaskGIT, arXiv 2202.04200).

A schedule maps progress r from 0 to 1 to the share of what is masked, from 1 down to 0. Training
draws r anew for every example, generation walks through it in equal steps.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

SCHEDULES = ("cosine", "linear", "square", "cubic", "sqrt", "arccos")


def masked_share(schedule: str, progress: Any, xp: Any = jnp) -> Any:
    """The share that is masked.

    Args:
      schedule: one of `SCHEDULES`: ``cosine`` cos(pi r / 2), ``linear`` 1 - r, ``square`` 1 - r^2,
        ``cubic`` 1 - r^3, ``sqrt`` 1 - sqrt(r), ``arccos`` 2 arccos(r) / pi.
      progress: r, values in [0, 1].
      xp: ``jax.numpy`` or ``numpy``.

    Returns:
      Values in [0, 1], shaped like `progress`.
    """
    match schedule:
        case "cosine":
            return xp.cos(progress * (np.pi / 2))
        case "linear":
            return 1 - progress
        case "square":
            return 1 - progress**2
        case "cubic":
            return 1 - progress**3
        case "sqrt":
            return 1 - xp.sqrt(progress)
        case "arccos":
            return xp.arccos(progress) * (2 / np.pi)
    raise ValueError(f"schedule '{schedule}' is not one of {', '.join(SCHEDULES)}")


def masked_after(schedule: str, steps: int, units: int) -> np.ndarray:
    """How many stay masked after each step of generation.

    Of M that are masked at first, ``floor(M share(k / steps))`` are after step k. But every step
    decides at least one while there is one left for each step to come, so that with M steps each
    decides one; where there are more steps than M, only the last M do.

    Args:
      schedule: one of `SCHEDULES`.
      steps: number of steps, at least 1.
      units: the largest M.

    Returns:
      int32 ``[steps, units + 1]``: row k - 1 holds the number after step k for each M from 0 to
      `units`. The last row is zero.
    """
    first = np.arange(units + 1)
    left, rows = first, []
    for step in range(1, steps + 1):
        share = masked_share(schedule, np.float64(step / steps), np)
        # 10 * (1 - 0.7) is a little below 3.
        planned = np.floor(first * share + 1e-9).astype(np.int64)
        left = np.minimum(left, np.maximum(steps - step, np.minimum(left - 1, planned)))
        rows.append(left)
    return np.stack(rows).astype(np.int32)
