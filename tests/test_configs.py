"""Every published config builds and trains. Oracle: the published sizes, written out."""

import importlib.util
import pathlib

import chex
import jax
import pytest

from bsq_jax.config import finalize, load_config_file, set_overrides
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
PIXELS = {"l1", "l2", "quantizer_loss", "loss", "psnr"}
ALL_LOSSES = PIXELS | {"perceptual", "adversarial", "r1", "logits_real", "logits_fake"}
TERMS = {
    "any_size:pictures": PIXELS,
    "digits:tokenizer": PIXELS,
    "digits:masked_lm": {"loss", "cross_entropy", "accuracy", "masked"},
    "masked_lm:imagenet128": {"loss", "cross_entropy", "accuracy", "masked"},
    "prior:pictures": {"loss", "saved"},
    "prior:any_size": {"loss", "saved"},
    "prior:clips": {"loss", "saved"},
    "prior:published": {"loss", "saved"},
    "quickstart:muon": PIXELS | {"perceptual"},
    "quickstart:whole": PIXELS,
    "quickstart:adamw": PIXELS,
    "quickstart:l1": PIXELS,
    "quickstart:perceptual": ALL_LOSSES,
    "starter:tokenizer": PIXELS | {"bits_per_pixel", "perceptual"},
    "starter:prior": {"loss", "saved"},
    "tokenizer:imagenet256": ALL_LOSSES,
    "tokenizer:imagenet128": ALL_LOSSES,
    "tokenizer:ucf101": ALL_LOSSES,
    "video:video": PIXELS,
}
# Terms that a config without that loss must not have.
OPTIONAL = {
    "perceptual",
    "adversarial",
    "r1",
    "lecam",
    "logits_real",
    "logits_fake",
    "bits_per_pixel",
}

# Whose tokens a model is on, by file.
TOKENIZERS = {
    "digits": "digits.py:tokenizer",
    "prior": "quickstart.py",
    "starter": "starter.py:tokenizer",
    "masked_lm": "tokenizer.py:imagenet128,bits=18,runlocal",
}


def config_of(path, variant, *more):
    """A finalised config; a model of tokens is on those of a tokenizer that is only described."""
    config = load_config_file(f"{path}:{','.join([variant, *more])}")
    if config.task != "tokenizer":
        config[config.task].tokenizer = "described"
        config.model.update(load_config_file(f"{FOLDER}/{TOKENIZERS[path.stem]}").model.to_dict())
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


# Arguments, and what they must come to: bits, stages, and the terms of the loss in the log.
QUANTIZERS = {
    "quantizer=leech": (18, 1, set()),
    "quantizer=fsq,levels=8x6x5": (8, 1, set()),
    "quantizer=vq,codes=600,ema": (10, 1, {"commitment", "codes_restarted"}),
    "quantizer=lfq,bits=18,stages=2": (18, 2, {"commitment", "codebook_entropy"}),
}
OF_QUANTIZERS = {"token_entropy", "commitment", "codebook_entropy", "codebook", "codes_restarted"}


@pytest.mark.parametrize("argument", QUANTIZERS)
def test_a_step_with_each_quantizer_is_traced(argument):
    config = config_of(FOLDER / "tokenizer.py", "imagenet256", argument, "runlocal")
    bits, stages, terms = QUANTIZERS[argument]
    name = argument.split("=")[1].split(",")[0]
    assert (config.quantizer.name, config.quantizer.stages) == (name, stages)
    assert config.model.bits == bits
    assert f"{name}, " in config.name
    assert f" {bits} bits" in config.name
    config.unlock()
    config.loss.update(perceptual=0.0, adversarial=0.0)  # traced above
    mesh = make_mesh()
    task, batch = make_task(config), abstract_batch(config, mesh)
    state = task.abstract_state(mesh)
    after, values = jax.eval_shape(task.train_step, state, batch, task.abstract_frozen(mesh))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert terms <= values.keys()
    assert terms or not OF_QUANTIZERS & values.keys()


@pytest.mark.parametrize(
    ("argument", "bits", "expected"),
    [
        ("", 36, {"name": "bsq", "stages": 1, "restart": 0.0}),
        ("stages=2", 36, {"name": "bsq", "stages": 2}),
        ("quantizer=lfq", 36, {"name": "lfq", "commitment_weight": 0.25}),
        ("imagenet128,quantizer=lfq", 36, {"group_size": 9}),
        ("imagenet128,quantizer=leech,stages=2", 36, {"stages": 2, "group_size": 1}),
        ("quantizer=fsq", 14, {"levels": (8, 8, 8, 6, 5)}),
        ("quantizer=fsq,bits=8", 8, {"levels": (8, 6, 5)}),
        ("quantizer=fsq,bits=10", 10, {"levels": (8, 5, 5, 5)}),
        ("quantizer=fsq,bits=13", 13, {"levels": (7, 5, 5, 5, 5)}),
        ("quantizer=fsq,bits=32,stages=2", 32, {"levels": (8, 8, 8, 5, 5, 5)}),
        ("quantizer=vq", 14, {"codes": 16384, "restart": 0.1, "learning": "gradient"}),
        ("quantizer=vq,bits=20,stages=2,cosine", 20, {"codes": 1024, "cosine": True}),
        ("ucf101,quantizer=vq,codes=1000,ema", 10, {"codes": 1000, "learning": "ema"}),
    ],
)
def test_arguments_of_quantizers(argument, bits, expected):
    config = finalize(load_config_file(f"{FOLDER / 'tokenizer.py'}:{argument}"))
    assert config.model.bits == bits
    assert {key: config.quantizer[key] for key in expected} == expected


def test_the_authors_settings_of_leech():
    bsq, leech = (
        finalize(load_config_file(f"{FOLDER / 'tokenizer.py'}:{argument}")).to_dict()
        for argument in ("bits=18", "quantizer=leech")
    )
    assert {key for key in bsq if bsq[key] != leech[key]} == {
        *("name", "quantizer", "optimizer", "discriminator"),
    }
    assert leech["optimizer"] == bsq["optimizer"] | {"final": 0.01}
    assert leech["discriminator"] == bsq["discriminator"] | {"channel_base": 16384}
    assert leech["quantizer"] == bsq["quantizer"] | {"name": "leech", "commitment_weight": None}


@pytest.mark.parametrize("name", ["lfq", "fsq", "vq", "leech"])
def test_the_quickstart_with_each_quantizer(name):
    """By its argument, and by overrides of the command line."""
    argument = finalize(load_config_file(f"{FOLDER / 'quickstart.py'}:quantizer={name},stages=2"))
    config = load_config_file(f"{FOLDER / 'quickstart.py'}")
    bits = "18" if name == "lfq" else "0"
    overrides = [f"quantizer.name={name}", f"model.bits={bits}", "quantizer.stages=2"]
    set_overrides(config, [f"--config.{word}" for word in overrides])
    config = finalize(config)
    assert argument.name == f"quickstart, {name}, 2 stages, {config.model.bits} bits"
    assert argument.model == config.model
    assert 1e5 < parameters(config) < 2e6


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("quantizer=fsq,bits=12", "bits=12 and stages=1: .* for 8, 10, 13, 14 or 16 bits a stage"),
        ("quantizer=fsq,levels=8xq", "quantizer.levels is '8xq'"),
        ("quantizer=fsq,levels=8x6x5,bits=9", "bits is 9, .*levels=8,6,5 have 8: set model.bits=8"),
        ("quantizer=vq,codes=600,bits=9", "model.bits is 9, .*codes=600 have 10"),
        ("quantizer=vq,bits=15,stages=2", "model.bits 15 does not divide .*set model.bits=14"),
        ("quantizer=vq,bits=30", r"quantizer.codes is 33554432: it must be from 2 to 2\^24"),
        ("quantizer=leech,bits=19", "model.bits is 19, .* quantizer.name=leech have 18"),
        ("quantizer=leech,ema", "quantizer.learning is ema, which quantizer.name=leech does not"),
        ("quantizer=pq", "quantizer.name is 'pq': it must be one of bsq"),
        ("stages=0", "quantizer.stages is 0"),
    ],
)
def test_arguments_that_contradict_are_one_line(argument, message):
    with pytest.raises(UserError, match=message) as error:
        finalize(load_config_file(f"{FOLDER / 'tokenizer.py'}:{argument}"))
    assert "\n" not in str(error.value)


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


def test_the_model_of_any_size_is_the_quickstarts_with_a_stage_more():
    names = ("quickstart", "any_size")
    quickstart, any_size = (load_config_file(f"{FOLDER / name}.py") for name in names)
    assert dict(any_size.model) == dict(quickstart.model) | {"bits": 24}
    assert any_size.quantizer.stages * 6 == 24
    assert any_size.optimizer == quickstart.optimizer
    shorter = finalize(load_config_file(f"{FOLDER / 'any_size.py'}:bits=18"))
    assert (shorter.model.bits, shorter.quantizer.stages) == (18, 3)
    with pytest.raises(UserError, match=r"bits=20: give a multiple of 6"):
        load_config_file(f"{FOLDER / 'any_size.py'}:bits=20")


def test_the_variants_of_the_quickstart():
    path = FOLDER / "quickstart.py"
    plain, whole, adamw, l1, perceptual = (
        load_config_file(f"{path}:{variant}").to_dict()
        for variant in ("", "whole", "adamw", "l1", "perceptual")
    )
    assert plain == load_config_file(f"{path}:muon").to_dict()
    assert {k for k in plain if plain[k] != whole[k]} == {"name", "model", "loss", "data"}
    assert plain["model"] == whole["model"] | {"spatial_window": 4, "positions": "window"}
    assert {k for k in whole if whole[k] != adamw[k]} == {
        *("name", "model", "quantizer", "optimizer", "train"),
    }
    assert (whole["quantizer"]["stages"], adamw["quantizer"]["stages"]) == (3, 1)
    assert whole["model"] == adamw["model"] | {"head_channels": 16}
    assert {k for k in perceptual if perceptual[k] != l1[k]} == {"name", "loss", "discriminator"}
    assert (perceptual["loss"]["perceptual"], l1["loss"]["perceptual"]) == (0.5, 0.0)
    assert perceptual["model"] == adamw["model"]
    with pytest.raises(UserError, match=r"variant 'l3' does not exist: did you mean l1\?"):
        load_config_file(f"{path}:l3")


@pytest.mark.parametrize(
    ("argument", "name", "stages"),
    [
        ("stages=1", "quickstart", 1),
        ("stages=2", "quickstart, 2 stages, 18 bits", 2),
        ("bits=10", "quickstart, 10 bits", 1),
        ("quantizer=leech", "quickstart, leech, 18 bits", 1),
    ],
)
def test_arguments_choose_other_stages_for_the_quickstart(argument, name, stages):
    config = finalize(load_config_file(f"{FOLDER / 'quickstart.py'}:{argument}"))
    assert (config.name, config.quantizer.stages) == (name, stages)


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
    config.model.update(tokenizer.model.to_dict())
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
