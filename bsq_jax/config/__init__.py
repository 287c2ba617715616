"""The configuration: every default, its type and the derived values, in one place.

A config file defines ``get_config(argument: str) -> ConfigDict``. It starts from `default_config`,
changes what its experiment needs and returns it. The command line picks a variant and overrides
single values::

    --config configs/tokenizer.py:imagenet256,bits=36 --config.train.batch_size=64

Configs are locked: an unknown key or a value of the wrong type is an error of one line. Ranges, and
what goes together, are in `bsq_jax.config.checks`.
"""

from __future__ import annotations

import importlib.util
import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from bsq_jax.config.checks import check
from bsq_jax.config.published import find_config_file
from bsq_jax.config.values import flatten, nearest, put, set_from_text
from bsq_jax.core.errors import UserError

# Keys of `model` that change how the network computes, not which parameters it has.
COMPUTE_KEYS = ("dtype", "remat", "attention")
# Keys of `prior` and `masked_lm` that their parameters do not depend on.
_NOT_IN_PARAMETERS = ("tokenizer", "label_dropout", "label_smoothing", "schedule", "mask_unit")
_OPTIONAL = {"optimizer.learning_rate", "discriminator.learning_rate"}  # may be none
# What keys that a saved config does not have yet meant then, where that is not today's default.
_ABSENT = {"loss.perceptual": 0.0, "loss.adversarial": 0.0}
# Keys of `discriminator` that the parameters of each kind depend on.
_DISCRIMINATOR_KEYS = {
    "stylegan": ("channel_base", "channel_max"),
    "stylegan3d": ("width",),
    "patchgan": ("width", "layers"),
}
LEARNING_RATE_PER_EXAMPLE = 4e-7  # published: 4e-7 x global batch


def default_config() -> ConfigDict:
    """All keys with the published values of the 256x256, 36-bit image tokenizer."""
    config = ConfigDict()
    config.name = "tokenizer"  # shown in logs and tables
    config.task = "tokenizer"  # tokenizer | prior | masked_lm: what is trained
    config.seed = 0  # of parameters, data order and augmentation; from 0 to 2^32 - 1

    config.model = model = ConfigDict()
    model.image_size = (256, 256)  # (height, width); on the command line 64 means a square
    model.frames = 1  # longest clip; 1 for images
    model.patch_size = 8
    model.bits = 36  # L, bits a token
    model.width = 768
    model.layers = 12  # of the encoder, and again of the decoder
    model.heads = 12
    model.mlp_ratio = 4.0
    model.head_hidden = 3072  # hidden width of the pixel head; 0 for one linear layer
    model.dtype = "bfloat16"  # of the computation; parameters and quantiser are float32
    model.remat = "none"  # none | dots | full: what is computed again in the backward pass
    model.attention = "auto"  # auto | dense | by_head | blocked | by_frame | cudnn | splash
    model.positions = "learned"  # learned (published) | sincos | rotary
    model.causality = "block_causal"  # block_causal | token_causal | full: who sees whom
    model.window = 0  # frames that a token sees, its own included; 0: all that causality allows

    model.min_bits = 0  # fewest bits of a token that it can be decoded from; 0: all are needed

    config.quantizer = quantizer = ConfigDict()
    quantizer.name = "bsq"
    quantizer.group_size = 1  # bits a group in the codebook entropy
    quantizer.inv_temperature = 1.0
    quantizer.token_weight = 1.0  # gamma0
    quantizer.codebook_weight = 1.0  # gamma
    quantizer.commitment_weight = 0.0  # beta

    config.prior = prior = ConfigDict()  # task prior; `model` is then that of its tokenizer
    prior.tokenizer = ""  # workdir or export
    prior.width = 192
    prior.layers = 4
    prior.heads = 6
    prior.hidden = 96  # channels of the network that goes through the bits of a token
    prior.window = 2  # frames that a token looks at, its own included
    prior.order = "raster"  # raster | grids: three steps a frame

    config.masked_lm = masked = ConfigDict()  # task masked_lm; `model` is that of its tokenizer
    masked.tokenizer = ""  # workdir or export
    masked.group_size = 9  # bits of a token that are one word; the last group has what is left
    masked.frames = 1  # frames of a clip that it looks at
    masked.width = 768
    masked.layers = 24
    masked.heads = 8
    masked.mlp_ratio = 4.0
    masked.classes = 0  # number of classes of the data; 0: it is not told them
    masked.label_dropout = 0.1  # share of examples whose class it is not told, for guidance
    masked.label_smoothing = 0.1
    masked.schedule = "cosine"  # of masks: cosine | linear | square | cubic | sqrt | arccos
    masked.mask_unit = "token"  # token | group: what is masked, and generated, as a whole

    config.sampling = sampling = ConfigDict()  # how a masked_lm generates; the command's defaults
    sampling.steps = 32  # at most one for each token
    sampling.schedule = "cosine"  # of what is still masked after a step, as masked_lm.schedule
    sampling.order = "confidence"  # confidence | random: what is decided first
    sampling.temperature = 1.0  # of the words
    sampling.noise = 4.5  # of the confidence, times Gumbel noise that falls to 0 at the last step
    sampling.guidance = 0.0  # classifier-free: logits + guidance x (logits - those without class)

    config.loss = loss = ConfigDict()
    loss.l1 = 1.0  # weight of the mean absolute error, pixels in [-1, 1]
    loss.l2 = 0.0  # weight of the mean squared error
    loss.entropy = 0.1  # weight of the quantiser's loss at the end of the ramp
    loss.entropy_ramp_start = 3.0  # times the weight at step 0
    loss.entropy_ramp_steps = 2000  # linear ramp down to 1x
    loss.perceptual = 0.1  # weight of LPIPS with VGG16 features
    loss.adversarial = 0.1  # weight of the generator's adversarial loss; 0: no discriminator
    loss.adversarial_kind = "non_saturating"  # non_saturating | hinge
    loss.adversarial_start = 0  # step from which both players play
    loss.adaptive = False  # scale the adversarial weight by the ratio of last-layer gradients
    loss.r1 = 10.0  # gamma of the R1 penalty, which counts gamma / 2; 0 for none
    loss.r1_every = 16  # steps between R1 penalties, each of this many times the weight
    loss.lecam = 0.0  # weight of the LeCAM regulariser
    loss.lecam_decay = 0.999  # of the averaged logits that LeCAM keeps

    config.discriminator = discriminator = ConfigDict()
    # stylegan | stylegan3d (clips; shorter ones are held at their last frame) | patchgan
    discriminator.name = "stylegan"
    discriminator.channel_base = 32768  # stylegan: channels at a resolution, times the resolution
    discriminator.channel_max = 512  # stylegan: the most channels
    discriminator.stddev_group = 4  # stylegan, stylegan3d: examples a group of minibatch-stddev
    discriminator.width = 64  # stylegan3d, patchgan: channels of the first block
    discriminator.layers = 3  # patchgan: strided layers
    discriminator.clip = "none"  # none | global | parameter: a clip would swallow R1's lazy steps
    # None: the generator's. Everything else about its optimizer is as in `optimizer`, with the
    # schedule (warm-up, cosine) laid out over the steps from loss.adversarial_start to the last.
    discriminator.learning_rate = config_dict.placeholder(float)

    config.optimizer = optimizer = ConfigDict()
    # None: 4e-7 x global batch.
    optimizer.learning_rate = config_dict.placeholder(float)
    optimizer.warmup_steps = 5000  # linear, from warmup_start x the rate
    optimizer.warmup_start = 0.1
    optimizer.final = 0.5  # x the rate at the last step, along a cosine
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    optimizer.eps = 1e-8
    optimizer.weight_decay = 1e-4
    optimizer.decay_all = False  # decay norms, biases and embeddings too
    optimizer.clip = "parameter"  # none | global | parameter
    optimizer.clip_norm = 1.0
    optimizer.ema = 0.999  # decay of the averaged parameters; 0 keeps none

    config.data = data = ConfigDict()
    # Pictures: photos | digits | folder:PATH | tfds:NAME | array_record:GLOB | synthetic
    # Clips: motion | clips:PATH | tfds:NAME | array_record:GLOB
    # For models of tokens also: tokens:PATH
    data.source = "photos"
    data.val_source = ""  # empty: the validation split of `source`
    data.resize = 256  # short side in pixels before the random crop
    data.scale = (1.0, 1.0)  # range of the crop's side, times image_size; drawn log-uniformly
    data.flip = True  # mirror half of the pictures
    data.permute_channels = 0.0  # share of crops with colour channels in a random order
    data.filter = "bicubic"  # of training: bilinear | bicubic | lanczos | box | hamming
    data.eval_filter = "lanczos"
    data.eval_resize = 256  # short side in pixels before the evaluation crop
    data.eval_crop = "center"  # center | tiles (all crops of a picture that do not overlap)
    data.threads = 16  # decoding threads of each host
    data.prefetch = 4  # batches kept ready on each host
    data.cache_mb = 0  # memory of each host for decoded training pictures
    data.max_broken = 0.05  # share of unreadable records that stops the run
    data.frames = 0  # frames of a clip; 0: model.frames
    data.stride = 1  # frames of the video from one frame of a clip to the next
    data.min_frames = 0  # shortest clip in training, lengths are drawn; 0: all are of `frames`
    data.image_share = 0.0  # share of training steps whose examples are single frames
    data.image_source = ""  # where these come from; empty: from `source`
    data.eval_clips = 1  # clips of each validation video, evenly spaced

    config.train = train = ConfigDict()
    train.steps = 1_000_000
    train.batch_size = 256  # global: over all devices of all hosts
    train.accumulate = 1  # micro-batches a step
    train.log_every = 100
    train.checkpoint_every = 5000
    train.keep = 2  # complete checkpoints kept
    train.evaluate_every = 10_000  # 0: only at the end
    # 0: only at the end. Pictures are part of an evaluation, so this makes whole evaluations, also
    # where evaluate_every is 0.
    train.picture_every = 5000
    train.deterministic = False  # on GPUs: the same to the bit when resumed, with slower kernels
    train.init = ""  # workdir or export whose weights a new run starts from; empty: random ones

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 64  # global
    evaluation.pictures = 8  # examples in a picture grid
    evaluation.lpips = True  # LPIPS with AlexNet features
    evaluation.frechet = True  # Frechet distances of the features of frozen networks
    evaluation.inception = ""  # file of Inception-v3 weights for FID and IS; empty: not measured
    evaluation.neighbours = 3  # k of precision and recall; 0 leaves them out
    evaluation.neighbours_examples = 10_000  # the most frames that precision and recall look at
    evaluation.videos = 2  # clips written as mp4 files
    evaluation.samples = 1000  # generated pictures that are measured; 0: none are

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # -1: all devices that the other axes leave
    mesh.fsdp = 1
    mesh.tensor = 1
    return config.lock()


def parse_argument(argument: str, variants: Sequence[str], **defaults: Any) -> ConfigDict:
    """Reads what follows the colon in ``--config file.py:variant,key=value``.

    Args:
      argument: the text, maybe empty.
      variants: the variants' names; the first is the default.
      **defaults: the keys that the config file takes, with their defaults.

    Returns:
      A locked ConfigDict with ``variant`` and every key of `defaults`.

    Raises:
      UserError: an unknown variant or key, or a value of the wrong type.
    """
    parsed = ConfigDict({"variant": variants[0], **defaults}).lock()
    for part in filter(None, (p.strip() for p in argument.split(","))):
        key, equals, text = part.partition("=")
        if equals:
            set_value(parsed, key, text, "--config argument")
        elif key in variants:
            parsed.variant = key
        elif isinstance(defaults.get(key), bool):
            parsed[key] = True
        else:
            raise UserError(
                f"--config variant '{key}' does not exist{nearest(key, variants)} "
                f"(there are: {', '.join(variants)})"
            )
    return parsed


def load_config_file(spec: str) -> ConfigDict:
    """Runs ``get_config`` of ``file.py:argument``, or of ``name:argument``: a published config.

    Raises:
      UserError: no such file, not Python, no ``get_config`` in it, or a mistake in it.
    """
    text, _, argument = spec.partition(":")
    path = find_config_file(text)
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path} defines no get_config(argument)")
        config = module.get_config(argument)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [str(f.lineno) for f in frames if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"config file {path}{where}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of config file {path} must return a ConfigDict")
    return config


def set_value(config: ConfigDict, dotted: str, text: str, flag: str = "--config") -> None:
    """Sets one value from text, converted to the type that the key has.

    Args:
      config: changed in place.
      dotted: the key, such as ``train.steps``.
      text: the value as typed.
      flag: what to call the key in messages.

    Raises:
      UserError: an unknown key (the nearest is named) or a value of another type.
    """
    set_from_text(config, dotted, text, flag, _OPTIONAL)


def set_overrides(config: ConfigDict, words: Sequence[str]) -> None:
    """Sets what ``--config.KEY=VALUE`` or ``--config.KEY VALUE`` say on a command line.

    Raises:
      UserError: another flag, an unknown key or a value of another type.
    """
    for key, text in parse_overrides(words):
        set_value(config, key, text)


def parse_overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """``(dotted key, text)`` of each ``--config.KEY=VALUE`` or ``--config.KEY VALUE``.

    Raises:
      UserError: another flag, or one without a value.
    """
    overrides, left = [], iter(words)
    for word in left:
        if not word.startswith("--config."):
            raise UserError(f"unknown flag {word}: see --help")
        key, equals, text = word.removeprefix("--config.").partition("=")
        value = text if equals else next(left, None)
        if value is None:
            raise UserError(f"{word} has no value: write {word}=VALUE")
        overrides.append((key, value))
    return overrides


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain containers that JSON can hold."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(saved: Mapping[str, Any], origin: str) -> ConfigDict:
    """A config from what `to_json` gave, checked key by key against the defaults.

    Keys that are not there take their defaults; losses that an older version did not have are off.

    Raises:
      UserError: keys of another version of this package, or values of another type.
    """
    config = default_config()
    if not isinstance(saved, Mapping):
        raise UserError(f"{origin} does not hold a config: was it edited?")
    known = dict(flatten(config))
    for key, value in {**_ABSENT, **dict(flatten(saved))}.items():
        if key not in known:
            raise UserError(f"{origin} has the unknown config key {key}: was it edited?")
        try:
            put(config, key, value, _OPTIONAL)
        except TypeError as error:
            raise UserError(
                f"{origin} has {value!r} for {key}, which must be {error}: was it edited?"
            ) from None
    return config


def model_identity(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that a checkpoint's parameters depend on, as plain containers."""
    model = {k: v for k, v in to_json(config)["model"].items() if k not in COMPUTE_KEYS}
    identity = {"task": config.task, "model": model, "quantizer": {"name": config.quantizer.name}}
    if config.task != "tokenizer":
        section = to_json(config)[config.task]
        for key in _NOT_IN_PARAMETERS:
            section.pop(key, None)
        identity[config.task] = section
    return identity


def run_identity(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that a run's state depends on: both players' parameters."""
    adversarial = config.task == "tokenizer" and config.loss.adversarial
    name = config.discriminator.name if adversarial else "none"
    sizes = {key: config.discriminator[key] for key in _DISCRIMINATOR_KEYS.get(name, ())}
    return {**model_identity(config), "discriminator": {"name": name, **sizes}}


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
            put(config, key, given[key], _OPTIONAL)
        except TypeError as error:
            raise UserError(f"config: {key} is {given[key]!r}: it must be {error}") from None
    check(config)
    if config.optimizer.learning_rate is None:
        config.optimizer.learning_rate = LEARNING_RATE_PER_EXAMPLE * config.train.batch_size
    return config.lock()
