"""Every published config builds and trains. Oracle: the published sizes, written out."""

import importlib.util
import pathlib

import chex
import jax
import pytest

from bsq_jax.config import finalize, load_config_file
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.factory import make_data_config
from bsq_jax.models.factory import make_masked_lm
from bsq_jax.training.saved_models import SavedModel, check_same_model
from bsq_jax.training.step_cost import abstract_batch, make_task
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))


def variants(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "VARIANTS", ("",))


ALL = [(path, variant) for path in FILES for variant in variants(path)]


def parameters(config):
    """Number of parameters of a config's model; nothing is allocated."""
    state = make_tokenizer_task(config).abstract_state(make_mesh())
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_there_are_configs():
    assert {"quickstart.py", "tokenizer.py", "video.py"} <= {path.name for path in FILES}


# The terms of the losses in the log of a step, by file and variant.
PIXELS = {"l1", "l2", "entropy", "loss", "psnr"}
ALL_LOSSES = PIXELS | {"perceptual", "adversarial", "r1", "logits_real", "logits_fake"}
TERMS = {
    "digits:tokenizer": PIXELS,
    "digits:masked_lm": {"loss", "cross_entropy", "accuracy", "masked"},
    "masked_lm:imagenet128": {"loss", "cross_entropy", "accuracy", "masked"},
    "prior:pictures": {"loss", "saved"},
    "prior:clips": {"loss", "saved"},
    "prior:published": {"loss", "saved"},
    "quickstart:l2": PIXELS,
    "quickstart:l1": PIXELS,
    "quickstart:perceptual": ALL_LOSSES,
    "tokenizer:imagenet256": ALL_LOSSES,
    "tokenizer:imagenet128": ALL_LOSSES,
    "tokenizer:ucf101": ALL_LOSSES,
    "video:video": PIXELS,
}
# Terms that a config without that loss must not have.
OPTIONAL = {"perceptual", "adversarial", "r1", "lecam", "logits_real", "logits_fake"}

# Whose tokens a model is on, by file.
TOKENIZERS = {
    "digits": "digits.py:tokenizer",
    "prior": "quickstart.py",
    "masked_lm": "tokenizer.py:imagenet128,bits=18,runlocal",
}


def config_of(path, variant, *more):
    """A finalised config; a model of tokens is on those of a tokenizer that is only described."""
    config = load_config_file(f"{path}:{','.join([variant, *more])}")
    if config.task != "tokenizer":
        config[config.task].tokenizer = "described"
        config.model.update(load_config_file(f"{FOLDER}/{TOKENIZERS[path.stem]}").model)
    return finalize(config)


@pytest.mark.parametrize(
    ("path", "variant", "local"),
    [
        (path, variant, local)
        for path, variant in ALL
        for local in ("", "runlocal")
        if not local or "runlocal" in path.read_text()
    ],
    ids=lambda x: getattr(x, "stem", x),
)
def test_a_step_of_each_config_is_traced(path, variant, local):
    """The whole training step, in its full size: shapes, types and the terms of its losses."""
    config = config_of(path, variant, *filter(None, [local]))
    assert config.name
    make_data_config(config)
    mesh = make_mesh()
    task, batch = make_task(config), abstract_batch(config, mesh)
    state = task.abstract_state(mesh)
    after, values = jax.eval_shape(task.train_step, state, batch, task.abstract_frozen(mesh))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_shape([values[name] for name in ("loss", "gradient_norm", "learning_rate")], ())
    terms = TERMS[f"{path.stem}:{variant}"]
    assert terms <= values.keys()
    assert not (OPTIONAL - terms) & values.keys()


def test_every_variant_is_listed():
    assert {f"{path.stem}:{variant}" for path, variant in ALL} == TERMS.keys()


@pytest.mark.parametrize(("path", "variant"), ALL, ids=lambda x: getattr(x, "stem", x))
def test_its_size(path, variant):
    """More than a toy; what is trained on a laptop has less than two million parameters."""
    config = config_of(path, variant)
    state = make_task(config).abstract_state(make_mesh())
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    large = path.stem == "tokenizer" or f"{path.stem}:{variant}" == "masked_lm:imagenet128"
    assert count > 1e8 if large else 1e5 < count < 2e7


def parameters_on_tokens(config):
    """Number of parameters of a model of tokens."""
    state = make_task(config).abstract_state(make_mesh())
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_the_variants_of_the_quickstart_differ_in_their_losses():
    path = FOLDER / "quickstart.py"
    plain, l1, perceptual = (load_config_file(f"{path}:{v}") for v in ("", "l1", "perceptual"))
    assert plain.to_dict() == load_config_file(f"{path}:l2").to_dict()
    ours, theirs = perceptual.to_dict(), l1.to_dict()
    assert {k for k in ours if ours[k] != theirs[k]} == {"name", "loss", "discriminator"}
    assert (ours["loss"]["perceptual"], theirs["loss"]["perceptual"]) == (0.5, 0.0)
    with pytest.raises(UserError, match=r"variant 'l3' does not exist: did you mean l2\?"):
        load_config_file(f"{path}:l3")


def test_the_image_model_of_the_quickstart_can_begin_the_laptops_video_model():
    image, video = (
        finalize(load_config_file(f"{FOLDER / name}.py")) for name in ("quickstart", "video")
    )
    check_same_model(video, SavedModel(image, {}, {}), "runs/quickstart", adaptable=["frames"])
    published = [f"{FOLDER / 'tokenizer.py'}:{name}" for name in ("imagenet256", "ucf101")]
    image, video = (finalize(load_config_file(name)) for name in published)
    check_same_model(video, SavedModel(image, {}, {}), "x", adaptable=["frames", "image_size"])
    assert (video.model.frames, video.model.image_size) == (16, (128, 128))
    assert video.discriminator.name == "stylegan3d"


def test_the_published_sizes():
    for bits in (18, 36):
        config = finalize(load_config_file(f"{FOLDER / 'tokenizer.py'}:imagenet256,bits={bits}"))
        assert config.model.image_size == (256, 256)
        assert (config.model.patch_size, config.model.bits) == (8, bits)
        assert config.optimizer.learning_rate == pytest.approx(4e-7 * config.train.batch_size)
        # Two ViT-B transformers of 85M parameters and their ends.
        assert 170e6 < parameters(config) < 185e6


def test_the_published_generator():
    config = load_config_file(f"{FOLDER / 'masked_lm.py'}")
    config.masked_lm.tokenizer = "x"
    tokenizer = load_config_file(f"{FOLDER / 'tokenizer.py'}:imagenet128,bits=18")
    config.model.update(tokenizer.model)
    config = finalize(config)
    shape = make_masked_lm(config).shape
    assert (shape.tokens, shape.words, shape.classes) == (256, (512, 512), 1000)
    assert config.sampling.steps == 32
    # 24 blocks of 12 x 768^2, embeddings of 1,026 words and 1,001 classes, and the head.
    assert 170e6 < parameters_on_tokens(config) < 175e6


@pytest.mark.smoke
@pytest.mark.parametrize(("size", "billions"), [("base", 0.1748), ("600m", 0.64), ("2b", 2.03)])
def test_sizes_of_the_tokenizer(size, billions):
    """12 width^2 a block, and 4 width^2 + 4 width x 192 of the pixel head; the rest is little."""
    config = finalize(load_config_file(f"{FOLDER / 'tokenizer.py'}:size={size}"))
    model = config.model
    closed = (24 * model.layers + 4) * model.width**2 + 4 * 192 * model.width
    assert parameters(config) == pytest.approx(closed, rel=0.02)
    assert parameters(config) == pytest.approx(billions * 1e9, rel=0.02)
    assert model.width // model.heads in (64, 128)


@pytest.mark.smoke
def test_an_unknown_size_is_one_line():
    with pytest.raises(UserError, match="size=3b does not exist: choose base, 600m, 2b"):
        load_config_file(f"{FOLDER / 'tokenizer.py'}:size=3b")
