"""Files of version 0.1, as it was before the package had folders, open as they did.

``golden/files_0_1`` holds what it wrote: the workdir of a tokenizer after four steps on digits, an
export of a prior on it, a token set of it, and a picture coded with the prior, with the picture
that it decoded (20x27 pixels).
"""

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

from bsq_jax import Codec, Tokenizer
from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.tokens import read_description
from bsq_jax.training.export import identity
from bsq_jax.training.recipes import make_recipe
from bsq_jax.training.saved_models import read_saved_config, with_tokenizer
from bsq_jax.training.workdir import check_resumable, open_checkpoints

OLD = GOLDEN / "files_0_1"


def picture(name):
    with Image.open(OLD / name) as image:
        return np.asarray(image.convert("RGB"))


def test_a_coded_picture_decodes_to_the_same_pixels():
    codec = Codec.load(OLD / "prior_export")
    frames = codec.decode((OLD / "picture.bsq").read_bytes()).frames
    np.testing.assert_array_equal(frames[0], picture("decoded.png"))


def test_a_picture_is_coded_to_the_same_bytes():
    codec = Codec.load(OLD / "prior_export")
    assert codec.encode(picture("picture.png")[None]) == (OLD / "picture.bsq").read_bytes()


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    config = read_saved_config(OLD / "tokenizer")
    mesh = make_mesh()
    task = make_recipe(config, tmp_path, mesh).task
    with open_checkpoints(OLD / "tokenizer") as checkpoints:
        meta = checkpoints.read_meta()
        check_resumable(config, meta, OLD / "tokenizer")
        step, state, _ = checkpoints.restore_latest(task.abstract_state(mesh))
    assert step == int(state.step) == 4


def test_a_prior_takes_the_model_of_an_old_tokenizer(tmp_path):
    config = default_config()
    config.task, config.prior.tokenizer = "prior", str(OLD / "tokenizer")
    made = finalize(with_tokenizer(config, tmp_path)).model
    model = read_saved_config(OLD / "tokenizer").model
    for key in ("image_size", "patch_size", "bits", "width", "positions"):
        assert made[key] == model[key]


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_token_set_is_that_of_its_tokenizer(weights):
    tokens = read_description(OLD / "tokens")
    tokenizer = Tokenizer.load(OLD / "tokenizer", weights=weights)
    same = identity(tokenizer.config, tokenizer.params).hex() == tokens.model
    assert same == (weights == "ema")
