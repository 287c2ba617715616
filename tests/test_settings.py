"""The declared settings against the code that reads them."""

import ast
import pathlib

import pytest

import bsq_jax
from bsq_jax import losses
from bsq_jax.config.settings import SECTIONS, declared
from bsq_jax.data import transforms
from bsq_jax.models import positions
from bsq_jax.models.attention import causality, choice
from bsq_jax.models.masked_lm import mask_schedule
from bsq_jax.models.prior import shape as prior_shape
from bsq_jax.models.transformer import REMAT_POLICIES

pytestmark = pytest.mark.smoke

ROOT = pathlib.Path(bsq_jax.__file__).parent


@pytest.mark.parametrize(
    ("key", "implemented"),
    [
        ("model.attention", choice.IMPLEMENTATIONS),
        ("model.positions", positions.KINDS),
        ("model.causality", causality.KINDS),
        ("model.remat", REMAT_POLICIES),
        ("prior.order", prior_shape.ORDERS),
        ("masked_lm.schedule", mask_schedule.SCHEDULES),
        ("sampling.schedule", mask_schedule.SCHEDULES),
        ("loss.adversarial_kind", losses.KINDS),
        ("data.filter", transforms.FILTERS),
        ("data.eval_filter", transforms.FILTERS),
    ],
)
def test_every_choice_is_implemented_and_declared(key, implemented):
    choices = declared()[key].allowed.choices
    assert sorted(choices) == sorted(implemented)
    assert declared()[key].default in choices


def names_read(folder):
    """Names of the attributes and arguments that modules outside the config read."""
    names = set()
    for path in folder.rglob("*.py"):
        if folder / "config" in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    return names


def test_every_setting_is_read_somewhere():
    """By its last name, so a setting with a common name may be missed."""
    read = names_read(ROOT)
    assert [key for key in declared() if key.split(".")[-1] not in read] == []
    assert [section for section in SECTIONS if section not in read] == []
    assert "no_such_setting" not in read
