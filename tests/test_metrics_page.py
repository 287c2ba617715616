"""That docs/metrics.md explains every metric, and none that is no more. Oracle: traced steps."""

import pathlib
import re

import jax
import numpy as np
import pytest
from test_configs import FOLDER, config_of

from bsq_jax.core.sharding import make_mesh
from bsq_jax.evaluation import masked_lm, prior
from bsq_jax.evaluation.metrics import CodeUsage
from bsq_jax.evaluation.tokenizer_table import tokenizer_rows
from bsq_jax.quantizers.layout import TokenLayout
from bsq_jax.training.step_cost import abstract_batch, make_task
from bsq_jax.training.tasks import step_metrics
from bsq_jax.training.throughput import Throughput

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "metrics.md"


def explained():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def traced(path, argument, **changes):
    """The names of a step's metrics; nothing is computed."""
    config = config_of(FOLDER / path, argument).copy_and_resolve_references()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    task, mesh = make_task(config), make_mesh()
    state, batch = task.abstract_state(mesh), abstract_batch(config, mesh)
    return set(jax.eval_shape(task.train_step, state, batch, task.abstract_frozen(mesh))[1])


def of_training():
    found = traced("quickstart.py", "perceptual", loss__adaptive=True, loss__lecam=0.1)
    found |= traced("quickstart.py", "adamw,quantizer=vq,codes=512")
    found |= traced("quickstart.py", "adamw,quantizer=vq,codes=512,ema")
    found |= traced("starter.py", "tokenizer")
    found |= traced("prior.py", "pictures") | traced("digits.py", "masked_lm")
    for unit in ("images", "clips"):
        found |= set(Throughput(0, 1, unit, 1.0).names)
    return found | {"broken_records"}


def of_evaluation():
    rows = (*tokenizer_rows(), *prior._ROWS, *masked_lm._ROWS)
    usage = CodeUsage(TokenLayout(1, 4, 16))
    usage.update(np.zeros((1, 1, 1, 1, 4), np.uint8), np.ones((1, 1), bool))
    lengths = prior._CodeLengths(1, 64)
    lengths._raw += 4
    lengths._frames = lengths._tokens = 1
    values = usage.result() | lengths.result() | {"count": 1, "samples": 1}
    scalars = {name for name, value in values.items() if isinstance(value, int | float)}
    return {row.key for row in rows} | scalars


def test_every_metric_is_explained_and_no_other():
    assert explained() == of_training() | of_evaluation()


@pytest.mark.smoke
def test_entropies_are_shown_in_bits():
    """Four fair coins that are certain of nothing have 4 bits, in the loss 4 ln 2."""
    layout = TokenLayout(1, 4, 16)
    nats = np.float32(4 * np.log(2))
    counts = {"bit_mean": np.full(4, 0.5, np.float32), "codes_seen": np.ones((1, 16), np.float32)}
    counts["code_shares"] = np.full((1, 16), 1 / 16, np.float32)
    losses = {"token_entropy": nats, "codebook_entropy": nats, "commitment": nats}
    shown = step_metrics.finish(
        {**losses, **counts, "squared_error": np.float32(4)}, layout, 64, 64
    )
    for name in ("token_entropy", "codebook_entropy"):
        np.testing.assert_allclose(shown[name], 4, rtol=1e-6)
    np.testing.assert_allclose([shown["commitment"], shown["perplexity"]], [nats, 16], rtol=1e-6)
    np.testing.assert_allclose([shown["psnr"], shown["bit_entropy"]], [0, 1], atol=1e-6)
