"""Every published config builds and trains. Oracle: the published sizes, written out."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
import tiny

from bsq_jax.config import finalize, load_config_file
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_sharding, make_mesh, to_global
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.train_pipeline import train_batches
from bsq_jax.models.factory import make_masked_lm, make_prior
from bsq_jax.training.export import save_export
from bsq_jax.training.recipes import make_recipe
from bsq_jax.training.saved_models import SavedModel, check_same_model, with_tokenizer
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))


def variants(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "VARIANTS", ("",))


ALL = [(path, variant) for path in FILES for variant in variants(path)]
TASKS = {(path, variant): load_config_file(f"{path}:{variant}").task for path, variant in ALL}
TOKENIZERS = [each for each in ALL if TASKS[each] == "tokenizer"]
ON_TOKENS = [each for each in ALL if TASKS[each] != "tokenizer"]


def parameters(config):
    """Number of parameters of a config's model; nothing is allocated."""
    state = make_tokenizer_task(config).abstract_state(make_mesh())
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def shrink(path, variant):
    """The variant with as little work as keeps its loss, optimiser and quantiser."""
    has_local = "runlocal" in path.read_text()
    arguments = [word for word in (variant, "runlocal" if has_local else "") if word]
    config = load_config_file(":".join([str(path), ",".join(arguments)]))
    if not has_local:
        config.model.update(image_size=(16, 16), width=16, layers=1, heads=2)
        config.data.update(resize=16, eval_resize=16, threads=1)
        config.train.batch_size = 8
        if config.model.frames > 1:
            config.model.frames = 3
            config.data.update(frames=3, min_frames=3)
        else:
            config.data.source = "synthetic"
    if config.discriminator.name == "stylegan3d":
        config.loss.r1 = 0.0  # its second derivatives take a minute to compile, and others test it
    return finalize(config)


def test_there_are_configs():
    assert {"quickstart.py", "tokenizer.py", "video.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize(("path", "variant"), TOKENIZERS, ids=lambda x: getattr(x, "stem", x))
def test_it_builds(path, variant):
    config = finalize(load_config_file(f"{path}:{variant}"))
    assert config.name
    assert parameters(config) > 2e5
    make_data_config(config)


@pytest.mark.parametrize(("path", "variant"), TOKENIZERS, ids=lambda x: getattr(x, "stem", x))
def test_it_trains_a_step(path, variant):
    config = shrink(path, variant)
    mesh = make_mesh(devices=jax.devices()[:1])  # compiles sooner than eight
    task, size = make_tokenizer_task(config), config.train.batch_size
    state = task.init_state(mesh)
    before = jax.device_get(state.params)
    data = make_data_config(config)
    batches = train_batches(data, global_batch=size, shard_index=0, shard_count=1)
    local = next(batches)
    batches.close()
    assert local["pixels"].shape[1] in (1, config.model.frames)
    batch = to_global({name: local[name] for name in ("pixels", "frames")}, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(task.train_step, in_shardings=(shardings, batch_sharding(mesh), None))
    state, values = step(state, batch, task.load_frozen(mesh))
    assert int(state.step) == 1
    assert all(np.isfinite(value).all() for value in jax.device_get(values).values())
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(state.params))
    # Attention's key bias alone has no gradient: it shifts all scores of a query alike.
    assert np.mean(jax.tree.leaves(changed)) > 0.8


def parameters_on_tokens(config):
    """The same for a model of tokens."""
    if config.task == "prior":
        model = make_prior(config)
        given = (jax.ShapeDtypeStruct((1, 1, model.shape.tokens, model.shape.bits), np.float32),)
    else:
        model = make_masked_lm(config)
        words = jax.ShapeDtypeStruct((1, 1, model.shape.tokens, model.shape.groups), np.int32)
        given = words, jax.ShapeDtypeStruct((1,), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *given)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("path", "variant"), ON_TOKENS, ids=lambda x: getattr(x, "stem", x))
def test_a_model_of_tokens_builds_and_trains_a_step(path, variant, tmp_path):
    whole = load_config_file(f"{path}:{variant}")
    whole[whole.task].tokenizer = "x"
    assert parameters_on_tokens(finalize(whole)) > 5e5

    mesh = make_mesh(devices=jax.devices()[:1])
    tokenizer = finalize(tiny.get_config())
    params = make_tokenizer_task(tokenizer).init_state(mesh).params
    save_export(tmp_path / "tokenizer", tokenizer, {"raw": jax.device_get(params)}, origin={})
    local = ",runlocal" if "runlocal" in path.read_text() else ""
    config = load_config_file(f"{path}:{variant}{local}")
    small = {"tokenizer": str(tmp_path / "tokenizer"), "width": 16, "layers": 1, "heads": 2}
    config[config.task].update(small)
    if config.task == "masked_lm":
        config.masked_lm.group_size = 3
    config.data.update(resize=16, scale=(1.0, 1.0), eval_resize=16, threads=1)
    config.train.batch_size = 8
    recipe = make_recipe(finalize(with_tokenizer(config, tmp_path)), tmp_path / "run", mesh)
    batches = recipe.batches(0, 0, 1)
    taken = {"pixels", "frames", "label"}
    batch = to_global({k: rows for k, rows in next(batches).items() if k in taken}, mesh)
    batches.close()
    state, _ = recipe.new_state()
    before = jax.device_get(state.params)
    state, values = jax.jit(recipe.task.train_step)(state, batch, recipe.task.load_frozen(mesh))
    assert all(np.isfinite(value).all() for value in jax.device_get(values).values())
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(state.params))
    assert np.mean(jax.tree.leaves(changed)) > 0.8


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
