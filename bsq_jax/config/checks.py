"""Checking a whole config: every setting's type and range, and which values fit together."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from bsq_jax.config import quantizer, sizes
from bsq_jax.config.config import default_config
from bsq_jax.config.own_parts import use_extensions
from bsq_jax.config.settings import declared
from bsq_jax.config.suggestions import did_you_mean
from bsq_jax.config.values import flatten, pair, put
from bsq_jax.core.errors import UserError
from bsq_jax.core.own_parts import parse_weighted
from bsq_jax.core.text import listed

LEARNING_RATE_PER_EXAMPLE = 4e-7  # published: 4e-7 x global batch
LARGEST_WORD = 18  # bits of a word of masked language models: 262,144 words, 196,560 with Leech


def finalize(config: ConfigDict) -> ConfigDict:
    """Checks a config and fills in derived values; returns a new locked config.

    Raises:
      UserError: a key too many or too few, a value of another type or out of range, or two that
        do not fit together; the message names the keys.
    """
    given = dict(flatten(config.copy_and_resolve_references()))
    config, settings = default_config(), declared()
    for key in given:
        if key not in settings:
            raise UserError(f"config: {key} is not a key{did_you_mean(key)}")
    for key, setting in settings.items():
        if key not in given:
            raise UserError(f"config: {key} is missing: begin with bsq_jax.config.default_config()")
        try:
            put(
                config,
                key,
                given[key],
                optional=setting.optional,
                any_length=setting.any_length,
            )
        except TypeError as error:
            raise UserError(f"config: {key} is {given[key]!r}: it must be {error}") from None
    values = dict(flatten(config))
    for key, setting in settings.items():
        if wanted := setting.refusal(values[key]):
            raise UserError(f"config: {key} is {values[key]!r}: it must be {wanted}")
    use_extensions(config)
    quantizer.fill_in(config)
    for clash in (
        *(*_model(config), *_training(config), *_clips(config)),
        *(*_models_of_tokens(config), *sizes.clashes(config)),
    ):
        raise UserError(f"config: {clash}")
    if config.optimizer.learning_rate is None:
        config.optimizer.learning_rate = LEARNING_RATE_PER_EXAMPLE * config.train.batch_size
    return config.lock()


# What does not fit together, in words; every setting is in its range already.


def _model(config: ConfigDict) -> Iterator[str]:
    model = config.model
    sides = zip(("height", "width"), model.image_size, pair(model.patch_size), strict=True)
    for name, side, patch in sides:
        if side % patch:
            own = "" if isinstance(model.patch_size, int) else f"'s {name}"
            yield (
                f"model.image_size {name} {side} is not a multiple of model.patch_size{own} {patch}"
            )
    if (time := model.patch_time) > 1:
        if model.frames == 1 or (model.frames - 1) % time:
            near = 1 + time * max(round(model.frames / time), 1)
            yield (
                f"model.frames is {model.frames}: with model.patch_time={time} a clip has the "
                f"first frame and groups of {time}, such as {near}"
            )
        if config.task != "tokenizer":
            yield (
                f"model.patch_time is {time}: task={config.task} takes tokens of single frames "
                "alone, of a tokenizer with model.patch_time=1"
            )
        if config.train.accumulate > 1 and config.data.min_frames:
            yield (
                "train.accumulate is not for clips of several lengths with model.patch_time above "
                "1: leave it at 1, or data.min_frames at 0"
            )
    if model.spatial_window % 2:
        yield f"model.spatial_window is {model.spatial_window}: windows have an even side, or 0"
    if model.positions == "window" and not model.spatial_window:
        yield "model.positions=window needs model.spatial_window, the side of a window in tokens"
    yield from quantizer.clashes(config)
    if model.min_bits > model.bits:
        yield f"model.min_bits is {model.min_bits}, more than model.bits={model.bits}"
    for name in ("model", "prior", "masked_lm"):
        width, heads = config[name].width, config[name].heads
        if width % heads:
            yield f"{name}.width {width} does not divide into {name}.heads {heads}"
    for key in ("encoder_width", "decoder_width"):
        if model[key] * model.heads % model.width:
            yield (
                f"model.{key} {model[key]} does not divide into heads of model.width / model.heads "
                f"= {model.width // model.heads} channels"
            )


def _training(config: ConfigDict) -> Iterator[str]:
    train, loss = config.train, config.loss
    if train.batch_size % train.accumulate:
        yield (
            f"train.batch_size {train.batch_size} does not divide by train.accumulate "
            f"{train.accumulate}"
        )
    own = sum(parse_weighted("loss.terms", term)[0] for term in loss.terms)
    if loss.l1 + loss.l2 + own == 0:
        yield (
            "loss.l1 and loss.l2 are both 0, and loss.terms has none of your own: there is nothing "
            "to reconstruct with"
        )


def _clips(config: ConfigDict) -> Iterator[str]:
    model, data = config.model, config.data
    if data.frames <= model.frames:
        return
    if model.frames > 1 and model.positions in ("learned", "window"):
        yield (
            f"data.frames is {data.frames}, and model.positions={model.positions} has embeddings "
            f"for model.frames={model.frames}: lower data.frames, raise model.frames or choose "
            "rotary"
        )
    if config.loss.adversarial and config.discriminator.name == "stylegan3d":
        yield (
            f"data.frames is {data.frames}, and discriminator.name=stylegan3d takes clips of "
            f"model.frames={model.frames}: lower data.frames or raise model.frames"
        )


def _words(config: ConfigDict) -> Iterator[str]:
    wanted, stages = config.masked_lm.group_size, config.quantizer.stages
    bits = config.model.bits // stages
    most = min(bits, LARGEST_WORD)
    sizes = [size for size in range(1, most + 1) if stages == 1 or bits % size == 0]
    if wanted not in sizes:
        yield (
            f"masked_lm.group_size is {wanted}: choose {listed(sizes)} for {bits} bits"
            + (" a stage, so that each word is in one stage" if stages > 1 else "")
        )


def _models_of_tokens(config: ConfigDict) -> Iterator[str]:
    task, masked = config.task, config.masked_lm
    if task == "masked_lm":
        yield from _words(config)
        if config.data.frames not in (0, masked.frames):
            yield (
                f"data.frames is {config.data.frames}, but masked_lm.frames is {masked.frames}: "
                "give both the same, or leave data.frames at 0"
            )
    if config.sampling.guidance and not (masked.classes and masked.label_dropout):
        yield (
            f"sampling.guidance is {config.sampling.guidance}, but the model is not trained with "
            "and without classes: set masked_lm.classes and label_dropout, or guidance=0"
        )
    if task != "tokenizer" and not config[task].tokenizer:
        yield (
            f"task={task} needs a trained tokenizer: set {task}.tokenizer to its workdir or export"
        )
