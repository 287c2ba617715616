"""The ranges of the configuration's values, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from bsq_jax.config.settings import OPTIONAL, default_config
from bsq_jax.config.values import flatten, nearest, put
from bsq_jax.core.errors import UserError

POSITIVE = {
    *("model.frames", "model.patch_size", "model.bits", "model.width", "model.layers"),
    *("model.heads", "model.mlp_ratio", "quantizer.inv_temperature"),
    *("optimizer.learning_rate", "optimizer.clip_norm", "train.steps", "train.batch_size"),
    *("train.accumulate", "train.log_every", "train.checkpoint_every", "train.keep"),
    *("eval.batch_size", "eval.pictures", "eval.neighbours_examples"),
    *("data.stride", "data.eval_clips"),
    *("discriminator.channel_base", "discriminator.channel_max", "discriminator.stddev_group"),
    *("discriminator.width", "discriminator.layers", "discriminator.learning_rate"),
    *("prior.width", "prior.layers", "prior.heads", "prior.hidden", "prior.window"),
    *("masked_lm.group_size", "masked_lm.frames", "masked_lm.width", "masked_lm.layers"),
    *("masked_lm.heads", "masked_lm.mlp_ratio", "sampling.steps"),
    "loss.r1_every",
}
NOT_NEGATIVE = {
    *("model.head_hidden", "loss.l1", "loss.l2", "loss.entropy", "loss.entropy_ramp_steps"),
    *("loss.perceptual", "loss.adversarial", "loss.adversarial_start", "loss.r1", "loss.lecam"),
    *("optimizer.warmup_steps", "optimizer.weight_decay", "train.evaluate_every"),
    *("train.picture_every", "eval.neighbours", "eval.videos"),
    *("model.window", "model.min_bits", "data.frames", "data.min_frames"),
    *("masked_lm.classes", "sampling.temperature", "sampling.noise", "eval.samples"),
}


LEARNING_RATE_PER_EXAMPLE = 4e-7  # published: 4e-7 x global batch


def finalize(config: ConfigDict) -> ConfigDict:
    """Fills derived values and checks the rest; returns a new locked config.

    The keys of ``data`` alone are checked where they are used, by the data pipeline.

    Raises:
      UserError: a key too many or too few, a value of another type or out of range, or two that
        do not fit together.
    """
    given = dict(flatten(config.copy_and_resolve_references()))
    config = default_config()
    known = dict(flatten(config))
    for key in given:
        if key not in known:
            raise UserError(f"config: {key} is not a key{nearest(key, list(known))}")
    for key in known:
        if key not in given:
            raise UserError(f"config: {key} is missing: begin with bsq_jax.config.default_config()")
        try:
            put(config, key, given[key], OPTIONAL)
        except TypeError as error:
            raise UserError(f"config: {key} is {given[key]!r}: it must be {error}") from None
    check(config)
    if config.optimizer.learning_rate is None:
        config.optimizer.learning_rate = LEARNING_RATE_PER_EXAMPLE * config.train.batch_size
    return config.lock()


def check(config: ConfigDict) -> None:
    """Refuses values out of range, and values that do not fit together.

    Raises:
      UserError: the message names the key.
    """
    model, train = config.model, config.train
    values = dict(flatten(config))

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(f"config: {message}")

    def one_of(key: str, choices: Sequence[str]) -> None:
        value = values[key]
        require(value in choices, f"{key} is '{value}': it must be one of {', '.join(choices)}")

    one_of("task", ("tokenizer", "prior", "masked_lm"))
    for key, value in values.items():
        if value is None:
            continue
        if key in POSITIVE:
            require(value > 0, f"{key} is {value}: it must be positive")
        if key in NOT_NEGATIVE:
            require(value >= 0, f"{key} is {value}: it must not be negative")
    for key in ("optimizer.ema", "optimizer.b1", "optimizer.b2", "loss.lecam_decay"):
        require(0 <= values[key] < 1, f"{key} is {values[key]}: it must be in [0, 1)")

    require(
        0 <= config.seed < 2**32,
        f"seed is {config.seed}: it must be from 0 to {2**32 - 1}, random keys have no more bits",
    )
    for key in ("masked_lm.label_dropout", "masked_lm.label_smoothing"):
        require(0 <= values[key] <= 1, f"{key} is {values[key]}: it must be in [0, 1]")
    for name, side in zip(("height", "width"), model.image_size, strict=True):
        require(
            side > 0 and side % model.patch_size == 0,
            f"model.image_size {name} {side} is not a multiple of model.patch_size "
            f"{model.patch_size}",
        )
    require(
        model.width % model.heads == 0,
        f"model.width {model.width} does not divide into model.heads {model.heads}",
    )
    require(
        config.quantizer.group_size in range(1, min(model.bits, 16) + 1),
        f"quantizer.group_size is {config.quantizer.group_size}: choose 1 to "
        f"{min(model.bits, 16)} for {model.bits} bits",
    )
    require(
        config.data.frames <= model.frames or model.frames == 1 or model.positions != "learned",
        f"data.frames is {config.data.frames}, and model.positions=learned has embeddings for "
        f"model.frames={model.frames}: lower data.frames, raise model.frames or choose rotary",
    )
    judges_clips = bool(config.loss.adversarial) and config.discriminator.name == "stylegan3d"
    require(
        config.data.frames <= model.frames or not judges_clips,
        f"data.frames is {config.data.frames}, and discriminator.name=stylegan3d takes clips of "
        f"model.frames={model.frames}: lower data.frames or raise model.frames",
    )
    require(
        train.batch_size % train.accumulate == 0,
        f"train.batch_size {train.batch_size} does not divide by train.accumulate "
        f"{train.accumulate}",
    )
    require(
        config.loss.l1 + config.loss.l2 > 0,
        "loss.l1 and loss.l2 are both 0: there is nothing to reconstruct with",
    )
    require(
        model.min_bits <= model.bits,
        f"model.min_bits is {model.min_bits}, more than model.bits={model.bits}",
    )
    prior = config.prior
    require(
        prior.width % prior.heads == 0,
        f"prior.width {prior.width} must divide into prior.heads {prior.heads}",
    )
    masked = config.masked_lm
    require(
        masked.width % masked.heads == 0,
        f"masked_lm.width {masked.width} does not divide into masked_lm.heads {masked.heads}",
    )
    require(
        config.task != "masked_lm" or masked.group_size in range(1, min(model.bits, 16) + 1),
        f"masked_lm.group_size is {masked.group_size}: choose 1 to {min(model.bits, 16)} for "
        f"{model.bits} bits",
    )
    require(
        config.task != "masked_lm" or config.data.frames in (0, masked.frames),
        f"data.frames is {config.data.frames}, but masked_lm.frames is {masked.frames}: give both "
        "the same, or leave data.frames at 0",
    )
    require(
        not config.sampling.guidance or bool(masked.classes and masked.label_dropout),
        f"sampling.guidance is {config.sampling.guidance}, but the model is not trained with and "
        "without classes: set masked_lm.classes and label_dropout, or guidance=0",
    )
    require(
        config.task == "tokenizer" or bool(config[config.task].tokenizer),
        f"task={config.task} needs a trained tokenizer: set {config.task}.tokenizer to its workdir "
        "or export",
    )
    for key in ("masked_lm.schedule", "sampling.schedule"):
        one_of(key, ("cosine", "linear", "square", "cubic", "sqrt", "arccos"))
    one_of("masked_lm.mask_unit", ("token", "group"))
    one_of("sampling.order", ("confidence", "random"))
    one_of("prior.order", ("raster", "grids"))
    one_of("model.dtype", ("float32", "bfloat16"))
    one_of("model.remat", ("none", "dots", "full"))
    kinds = ("auto", "dense", "by_head", "blocked", "by_frame", "cudnn", "splash")
    one_of("model.attention", kinds)
    one_of("model.positions", ("learned", "sincos", "rotary"))
    one_of("model.causality", ("block_causal", "token_causal", "full"))
    one_of("optimizer.clip", ("none", "global", "parameter"))
    one_of("discriminator.clip", ("none", "global", "parameter"))
    one_of("loss.adversarial_kind", ("non_saturating", "hinge"))
    one_of("discriminator.name", ("stylegan", "stylegan3d", "patchgan"))
