"""Mask schedules. Oracles: their formulas in Python's math, and what a schedule has to promise."""

import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.models.masked_lm.mask_schedule import SCHEDULES, masked_after, masked_share

FORMULAS = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r * r,
    "cubic": lambda r: 1 - r**3,
    "sqrt": lambda r: 1 - math.sqrt(r),
    "arccos": lambda r: 2 * math.acos(r) / math.pi,
}


@pytest.mark.smoke
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shares(schedule):
    progress = np.linspace(0, 1, 101)
    want = [FORMULAS[schedule](r) for r in progress]
    np.testing.assert_allclose(masked_share(schedule, progress, np), want, atol=1e-12)
    assert want[0] == 1
    assert abs(want[-1]) < 1e-12
    with pytest.raises(ValueError, match="not one of cosine"):
        masked_share("sine", progress)


class Shares(chex.TestCase):
    """In float32: compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters(*SCHEDULES)
    def test_the_formula(self, schedule):
        progress = np.linspace(0, 1, 101)
        share = self.variant(lambda r: masked_share(schedule, r))(progress.astype(np.float32))
        chex.assert_type(share, jnp.float32)
        want = np.array([FORMULAS[schedule](r) for r in progress])
        chex.assert_trees_all_close(share, want, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_are_the_closed_form_where_every_step_decides_something(schedule):
    """The published use: few steps for many tokens. All in exact arithmetic but the formula."""
    for steps, units in ((8, 256), (12, 1024), (5, 64)):
        found = masked_after(schedule, steps, units)
        chex.assert_shape(found, (steps, units + 1))
        chex.assert_type(found, np.int32)
        plain = [math.floor(units * FORMULAS[schedule](k / steps) + 1e-9) for k in range(steps + 1)]
        here = [units, *found[:, units]]
        for step in range(1, steps + 1):
            lowest = steps - step  # one for each step to come
            assert here[step] == max(lowest, min(here[step - 1] - 1, plain[step])), (steps, step)
        if schedule == "cosine":
            assert here == plain, steps
    # 10 * (1 - 0.7) must be 3 and not 2.
    assert masked_after("linear", 10, 10)[:, 10].tolist() == list(range(9, -1, -1))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3, 7, 16, 40])
def test_every_number_of_steps_ends_with_nothing_masked(schedule, steps):
    counts = masked_after(schedule, steps, 16)
    assert (counts[-1] == 0).all()
    whole = np.concatenate([np.arange(17)[None], counts])
    decided = -np.diff(whole, axis=0)
    assert (decided >= 0).all()
    for units in range(17):
        # Every step decides one, or where there are too many steps, the last ones do.
        assert (decided[max(steps - units, 0) :, units] >= 1).all()
        assert (decided[: max(steps - units, 0), units] == 0).all()
        if steps == units:
            assert (decided[:, units] == 1).all()
