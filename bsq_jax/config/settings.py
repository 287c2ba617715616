"""All settings: default, type, range or choices, and whether a model's parameters depend on it.

This is the only place that says so: `default_config`, the checks, what a checkpoint is bound to and
fingerprints are made from these tables. The defaults are the published values of the 256x256,
36-bit image tokenizer. How values of several settings must fit together is in
`bsq_jax.config.checks`.
"""

from __future__ import annotations

import re

from bsq_jax.config.declaration import (
    DECAY,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Allowed,
    Setting,
    one_of,
    one_of_or_own,
)
from bsq_jax.config.sizes import is_size
from bsq_jax.config.values import PAIR

Section = dict[str, Setting]

_CLIPPING = one_of("none", "global", "parameter")
_FILTER = one_of("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_SIZES = Allowed("HEIGHTxWIDTH each, such as 192x320", is_size)
_SCHEDULE = one_of("cosine", "linear", "square", "cubic", "sqrt", "arccos")
_PROJECT = Allowed(
    "PROJECT or ENTITY/PROJECT, without spaces and any of \\#?%:",
    lambda text: re.fullmatch(r"([^\s/\\#?%:]+/)?[^\s/\\#?%:]{1,128}|", text) is not None,
)
_SEED = Allowed("from 0 to 2^32 - 1, the most that random keys hold", lambda s: 0 <= s < 2**32)

TOP: Section = {
    "name": Setting("tokenizer"),  # shown in logs and tables
    "task": Setting(  # what is trained
        "tokenizer", one_of("tokenizer", "prior", "masked_lm"), identity=True
    ),
    "seed": Setting(0, _SEED),  # of parameters, data order and augmentation
    # folders of modules of your own that other settings name (docs/extending), absolute, separated
    # as in PATH; that of the config file by itself
    "extensions": Setting("", absent=""),
}

MODEL: Section = {
    # (height, width) in pixels; on the command line 64 means a square
    "image_size": Setting((256, 256), POSITIVE, identity=True),
    "frames": Setting(1, POSITIVE, identity=True),  # longest clip, of the video; 1 for images
    # side of a patch in pixels, or its (height, width)
    "patch_size": Setting(8, POSITIVE, identity=True, kind=PAIR),
    # frames of the video that a token is of; the first frame has tokens of its own, so that a clip
    # of 1 + k x patch_time frames has 1 + k frames of tokens
    "patch_time": Setting(1, Allowed("1, 2 or 4", (1, 2, 4).__contains__), identity=True, absent=1),
    # L, bits a token; 0: what the quantizer has (fsq, vq, leech and your own)
    "bits": Setting(36, NOT_NEGATIVE, identity=True),
    "width": Setting(768, POSITIVE, identity=True),  # channels of a token
    "layers": Setting(12, POSITIVE, identity=True),  # of the encoder, and again of the decoder
    # of one half alone; 0: `width` and `layers`, published
    "encoder_width": Setting(0, NOT_NEGATIVE, identity=True, absent=0),
    "encoder_layers": Setting(0, NOT_NEGATIVE, identity=True, absent=0),
    "decoder_width": Setting(0, NOT_NEGATIVE, identity=True, absent=0),
    "decoder_layers": Setting(0, NOT_NEGATIVE, identity=True, absent=0),
    # of a half as wide as `width`; one of another width has heads that are as wide
    "heads": Setting(12, POSITIVE, identity=True),
    "mlp_ratio": Setting(4.0, POSITIVE, identity=True),  # hidden width of an MLP over `width`
    # hidden width of the pixel head; 0 for one linear layer
    "head_hidden": Setting(3072, NOT_NEGATIVE, identity=True),
    # channels of the residual convolutions that follow it, over whole frames, so that patches meet
    # without edges; 0: none, published
    "head_channels": Setting(0, NOT_NEGATIVE, identity=True, absent=0),
    # of the computation; parameters and quantizer are float32
    "dtype": Setting("bfloat16", one_of("float32", "bfloat16")),
    # what is computed again in the backward pass, to save memory
    "remat": Setting("none", one_of("none", "dots", "full")),
    "attention": Setting(  # implementation; auto takes the fastest for the device and shape
        "auto", one_of("auto", "dense", "by_head", "blocked", "cudnn", "splash")
    ),
    # published: learned; window: learned for the tokens of a window of `spatial_window`
    "positions": Setting(
        "learned", one_of_or_own("learned", "window", "sincos", "rotary"), identity=True
    ),
    "causality": Setting(  # which frames and tokens attention may see
        "block_causal", one_of("block_causal", "token_causal", "full"), identity=True
    ),
    # side in tokens, an even number, of the square windows of a frame that attention stays within;
    # those of every other block are shifted by half; 0: attention sees whole frames, published
    "spatial_window": Setting(0, NOT_NEGATIVE, identity=True, absent=0),
    # frames of tokens that a token sees, its own included; 0: all that causality allows
    "window": Setting(0, NOT_NEGATIVE, identity=True),
    # fewest bits of a token that it can be decoded from, whole stages of a residual quantizer; 0:
    # all are needed or, of a residual quantizer, one stage, and training always has all
    "min_bits": Setting(0, NOT_NEGATIVE, identity=True),
}

_SOFT = ("bsq", "lfq")  # quantizers with a soft assignment, and so with entropy terms

QUANTIZER: Section = {
    "name": Setting("bsq", one_of_or_own("bsq", "lfq", "fsq", "vq", "leech"), identity=True),
    # residual quantization: each stage has an equal share of the bits, for what is left
    "stages": Setting(1, POSITIVE, identity=True, absent=1),
    # fsq: values of each channel
    "levels": Setting(
        (8, 8, 8, 6, 5),
        Allowed("from 2 to 65536 each", lambda n: 2 <= n <= 2**16),
        identity=True,
        kinds=("fsq",),
        any_length=True,
        absent=(8, 8, 8, 6, 5),
    ),
    # fsq: the tanh reaches to the end of the outer levels' cells, without which residual stages
    # leave levels unused; None: with stages. Otherwise it ends at the outer levels, published
    "whole_cells": Setting(None, identity=True, kind=bool, kinds=("fsq",), absent=False),
    "codes": Setting(  # vq: size of the codebook
        16384,
        Allowed("from 2 to 2^24", lambda n: 2 <= n <= 2**24),
        identity=True,
        kinds=("vq",),
        absent=16384,
    ),
    # vq: of a code
    "channels": Setting(8, POSITIVE, identity=True, kinds=("vq",), absent=8),
    # vq: nearest by the angle; latents and codes are normalized
    "cosine": Setting(False, identity=True, kinds=("vq",), absent=False),
    # vq: how the codebook is trained: by its loss, or as moving averages of the latents
    "learning": Setting("gradient", one_of("gradient", "ema"), kinds=("vq",)),
    "decay": Setting(0.99, DECAY, kinds=("vq",)),  # of the averages, and of the codes' usage
    # vq: a code that is used less than this, times an equal share of the tokens, is replaced by a
    # latent of the batch; 0: none is, and most may never be used; 0.1 is a good value
    "restart": Setting(0.0, SHARE, kinds=("vq",)),
    # bits a group in the codebook entropy
    "group_size": Setting(1, POSITIVE, kinds=_SOFT),
    # of the soft assignment in the entropies
    "inv_temperature": Setting(1.0, POSITIVE, kinds=_SOFT),
    "token_weight": Setting(1.0, kinds=_SOFT),  # gamma0, of the entropy of a token's code
    "codebook_weight": Setting(1.0, kinds=_SOFT),  # gamma, of the entropy of the mean code
    # beta, of the distance to the code; None: published, 0 for bsq and 0.25 for lfq and vq
    "commitment_weight": Setting(None, NOT_NEGATIVE, kind=float, kinds=(*_SOFT, "vq")),
    # share of the bits that are turned over in training, so that the decoder learns to bear it
    "flip": Setting(0.0, Allowed("in [0, 0.5]", lambda share: 0 <= share <= 0.5)),
}

# Task prior; `model` is then that of its tokenizer.
PRIOR: Section = {
    "tokenizer": Setting(""),  # workdir or export
    "width": Setting(192, POSITIVE, identity=True),
    "layers": Setting(4, POSITIVE, identity=True),
    "heads": Setting(6, POSITIVE, identity=True),
    # channels of the network that goes through the bits of a token
    "hidden": Setting(96, POSITIVE, identity=True),
    # frames that a token looks at, its own included
    "window": Setting(2, POSITIVE, identity=True),
    # (rows, columns) to each side of a token of the neighbourhood that it looks at, so that the
    # prior is one for frames of any size; 0: all of a tile of model.image_size. 0 is the default so
    # that a config file from before still describes the model that it made
    "reach": Setting((0, 0), NOT_NEGATIVE, identity=True, absent=[0, 0]),
    # of the tokens of a frame; raster: one a step (with a reach one a row, wavefronts), grids:
    # three steps a frame
    "order": Setting("raster", one_of("raster", "grids"), identity=True),
}

# Task masked_lm; `model` is then that of its tokenizer.
MASKED_LM: Section = {
    "tokenizer": Setting(""),  # workdir or export
    # bits of a token that are one word; the last group has what is left; 18 at most, and within one
    # stage of a residual quantizer
    "group_size": Setting(9, POSITIVE, identity=True),
    "frames": Setting(1, POSITIVE, identity=True),  # frames of a clip that it looks at
    "width": Setting(768, POSITIVE, identity=True),
    "layers": Setting(24, POSITIVE, identity=True),
    "heads": Setting(8, POSITIVE, identity=True),
    "mlp_ratio": Setting(4.0, POSITIVE, identity=True),
    # number of classes of the data; 0: it is not told them
    "classes": Setting(0, NOT_NEGATIVE, identity=True),
    # share of examples whose class it is not told, for guidance
    "label_dropout": Setting(0.1, SHARE),
    "label_smoothing": Setting(0.1, SHARE),
    "schedule": Setting("cosine", _SCHEDULE),  # of the masked share
    # what is masked, and generated, as a whole
    "mask_unit": Setting("token", one_of("token", "group")),
}

# How a masked_lm generates; the defaults of the command.
SAMPLING: Section = {
    "steps": Setting(32, POSITIVE),  # of a frame; at most one for each token
    "schedule": Setting("cosine", _SCHEDULE),  # of what is still masked after a step
    "order": Setting("confidence", one_of("confidence", "random")),  # what is decided first
    "temperature": Setting(1.0, NOT_NEGATIVE),  # of the words; 0 takes the likeliest
    # of the confidence, times Gumbel noise that falls to 0 at the last step
    "noise": Setting(4.5, NOT_NEGATIVE),
    # w of classifier-free guidance: logits + w (logits - those without class)
    "guidance": Setting(0.0),
}

LOSS: Section = {
    "l1": Setting(1.0, NOT_NEGATIVE),  # weight of the mean absolute error, pixels in [-1, 1]
    "l2": Setting(0.0, NOT_NEGATIVE),  # weight of the mean squared error
    # losses of your own, each a weight times module:attribute, see docs/extending/loss.md
    "terms": Setting((), any_length=True, absent=()),
    # weight, after the ramp, of the quantizer's loss where that has entropy terms (bsq, lfq); that
    # of the others counts once from the first step on (vq), or is 0 (fsq, leech)
    "entropy": Setting(0.1, NOT_NEGATIVE),
    "entropy_ramp_start": Setting(3.0),  # times the weight at step 0
    "entropy_ramp_steps": Setting(2000, NOT_NEGATIVE),  # linear ramp down to 1x
    # weight of the code length of the tokens, in bits a pixel, under a small prior that is trained
    # beside; for bsq, lfq, fsq with equal levels, and residual stages of these
    "rate": Setting(0.0, NOT_NEGATIVE, absent=0.0),
    "rate_ramp_steps": Setting(500, NOT_NEGATIVE),  # linear ramp from 0 up to the weight
    # times the weight for each stage that model.min_bits cut an example's tokens short by
    "rate_growth": Setting(1.5, POSITIVE),
    "rate_learning_rate": Setting(3e-3, POSITIVE),  # of the small prior, of the same schedule
    # weight of LPIPS
    "perceptual": Setting(0.1, NOT_NEGATIVE, absent=0.0),
    # whose features; alexnet costs a small part of vgg16, but is what evaluations measure with
    "perceptual_network": Setting("vgg16", one_of("vgg16", "alexnet"), absent="vgg16"),
    # step from which LPIPS counts; before, its network is not run
    "perceptual_start": Setting(0, NOT_NEGATIVE, absent=0),
    # weight of the generator's adversarial loss; 0: no discriminator
    "adversarial": Setting(0.1, NOT_NEGATIVE, absent=0.0),
    "adversarial_kind": Setting("non_saturating", one_of("non_saturating", "hinge")),
    # step from which the discriminator is trained and used
    "adversarial_start": Setting(0, NOT_NEGATIVE),
    # scale the adversarial weight by the ratio of last-layer gradients
    "adaptive": Setting(False),
    "r1": Setting(10.0, NOT_NEGATIVE),  # gamma of the R1 penalty, which counts gamma / 2; 0: none
    # steps between R1 penalties, each of this many times the weight
    "r1_every": Setting(16, POSITIVE),
    "lecam": Setting(0.0, NOT_NEGATIVE),  # weight of the LeCAM regularizer
    "lecam_decay": Setting(0.999, DECAY),  # of the averaged logits that LeCAM keeps
}

DISCRIMINATOR: Section = {
    # stylegan3d takes clips; shorter ones are padded with their last frame
    "name": Setting("stylegan", one_of("stylegan", "stylegan3d", "patchgan"), identity=True),
    # stylegan: channels at a resolution, times the resolution
    "channel_base": Setting(32768, POSITIVE, identity=True, kinds=("stylegan",)),
    "channel_max": Setting(
        512, POSITIVE, identity=True, kinds=("stylegan",)
    ),  # stylegan: the most channels
    # stylegan, stylegan3d: of the last map. none: published, the last layers take it as it is, so
    # that frames have one size; adaptive: it is averaged to 4x4, and frames have any size
    "pooling": Setting(
        "none",
        one_of("none", "adaptive"),
        identity=True,
        kinds=("stylegan", "stylegan3d"),
        absent="none",
    ),
    # stylegan, stylegan3d: examples a group of minibatch-stddev
    "stddev_group": Setting(4, POSITIVE),
    # stylegan3d, patchgan: channels of the first block
    "width": Setting(64, POSITIVE, identity=True, kinds=("stylegan3d", "patchgan")),
    "layers": Setting(3, POSITIVE, identity=True, kinds=("patchgan",)),  # patchgan: strided layers
    "clip": Setting("none", _CLIPPING),  # of gradients; a clip would swallow R1's lazy steps
    # None: the generator's. Everything else about its optimizer is as in `optimizer`, with the
    # schedule (warm-up, cosine) laid out over the steps from loss.adversarial_start to the last.
    "learning_rate": Setting(None, POSITIVE, kind=float),
}

OPTIMIZER: Section = {
    # adamw: published; muon: on the matrices of the blocks, and AdamW on the rest
    "name": Setting("adamw", one_of_or_own("adamw", "muon"), absent="adamw"),
    # muon: its rate, of the same schedule; that of AdamW is learning_rate
    "muon_learning_rate": Setting(0.02, POSITIVE, kinds=("muon",)),
    "momentum": Setting(0.95, DECAY, kinds=("muon",)),  # muon: of the averaged gradients
    "learning_rate": Setting(None, POSITIVE, kind=float),  # None: 4e-7 x global batch
    "warmup_steps": Setting(5000, NOT_NEGATIVE),  # linear, from warmup_start x the rate
    "warmup_start": Setting(0.1),
    "final": Setting(0.5),  # x the rate at the last step, along a cosine
    "b1": Setting(0.9, DECAY),
    "b2": Setting(0.99, DECAY),
    "eps": Setting(1e-8),
    "weight_decay": Setting(1e-4, NOT_NEGATIVE),
    "decay_all": Setting(False),  # decay norms, biases and embeddings too
    "clip": Setting("parameter", _CLIPPING),
    "clip_norm": Setting(1.0, POSITIVE),
    "ema": Setting(0.999, DECAY),  # decay of the averaged parameters; 0 keeps none
}

DATA: Section = {
    # Pictures: photos | digits | folder:PATH | parquet:PATTERN | synthetic
    # Clips: motion | clips:PATH
    # Either: tfds:NAME | array_record:GLOB | webdataset:PATTERN, such as shards/{000..099}.tar
    # Either, of your own: module:attribute, see docs/extending/data_source.md
    # For models of tokens also: tokens:PATH
    "source": Setting("photos"),
    "val_source": Setting(""),  # empty: the validation split of `source`
    # short side in pixels before the random crop; 0 keeps the file's size
    "resize": Setting(256, NOT_NEGATIVE),
    # range of the crop's side, times image_size; drawn log-uniformly
    "scale": Setting((1.0, 1.0), POSITIVE),
    "flip": Setting(True),  # mirror half of the pictures
    "permute_channels": Setting(0.0, SHARE),  # share of crops with color channels in random order
    "filter": Setting("bicubic", _FILTER),  # of training
    # what decodes and resizes in training: pillow, or simd: twice as many pictures a second, values
    # differ by 1 or 2 of 255 in each resize; needs `pip install simplejpeg cykooz-resizer`
    "backend": Setting("pillow", one_of("pillow", "simd"), absent="pillow"),
    "eval_filter": Setting("lanczos", _FILTER),
    "eval_resize": Setting(256, POSITIVE),  # short side in pixels before the evaluation crop
    # tiles: all crops of a picture that do not overlap; bucket: one crop of one of data.sizes, to
    # which the picture is resized so that it covers it (eval_resize does not count then)
    "eval_crop": Setting("center", one_of("center", "tiles", "bucket")),
    # HEIGHTxWIDTH in pixels of the crops of training, such as 256x256,192x320,320x192: each step
    # has one of them, with about as many tokens as train.batch_size crops of model.image_size;
    # empty: all crops are of model.image_size. Which picture has which size: docs/data.md
    "sizes": Setting((), _SIZES, any_length=True, absent=()),
    # decoding threads of each host; 0: the thread that trains decodes
    "threads": Setting(16, NOT_NEGATIVE),
    # processes of each host that make the batches of training, with data.threads threads in all; 0:
    # threads of the process that trains. The batches are the same
    "workers": Setting(0, NOT_NEGATIVE, absent=0),
    "prefetch": Setting(4, NOT_NEGATIVE),  # batches kept ready on each host
    "cache_mb": Setting(0, NOT_NEGATIVE),  # memory of each host for decoded training pictures, MiB
    "max_broken": Setting(0.05, SHARE),  # share of unreadable records that stops the run
    "frames": Setting(0, NOT_NEGATIVE),  # frames of a clip; 0: model.frames
    "stride": Setting(1, POSITIVE),  # frames of the video from one frame of a clip to the next
    # shortest clip in training, lengths are drawn; 0: all are of `frames`
    "min_frames": Setting(0, NOT_NEGATIVE),
    "image_share": Setting(0.0, SHARE),  # share of training steps whose examples are single frames
    "image_source": Setting(""),  # where these come from; empty: from `source`
    "eval_clips": Setting(1, POSITIVE),  # clips of each validation video, evenly spaced
}

TRAIN: Section = {
    "steps": Setting(1_000_000, POSITIVE),
    "batch_size": Setting(256, POSITIVE),  # global: over all devices of all hosts
    "accumulate": Setting(1, POSITIVE),  # micro-batches a step
    "log_every": Setting(100, POSITIVE),
    "checkpoint_every": Setting(5000, POSITIVE),  # steps that are evaluated are saved as well
    "keep": Setting(2, POSITIVE),  # complete checkpoints kept
    "evaluate_every": Setting(10_000, NOT_NEGATIVE),  # 0: only at the end
    # 0: only at the end. Pictures are part of an evaluation, so this makes whole evaluations, also
    # where evaluate_every is 0.
    "picture_every": Setting(5000, NOT_NEGATIVE),
    "deterministic": Setting(False),  # on GPUs: the same to the bit when resumed, slower kernels
    # workdir or export whose weights a new run starts from; empty: random ones
    "init": Setting(""),
}

# Where a run is recorded besides metrics.jsonl and TensorBoard.
LOG: Section = {
    # project of Weights & Biases, PROJECT or ENTITY/PROJECT; needs `pip install wandb`; empty: none
    "wandb": Setting("", _PROJECT, absent=""),
}

EVAL: Section = {
    "batch_size": Setting(64, POSITIVE),  # global
    "pictures": Setting(8, POSITIVE),  # examples in a picture grid
    # metrics of your own, each module:attribute, see docs/extending/metric.md
    "metrics": Setting((), any_length=True, absent=()),
    # show what the starter model makes of the photographs in the picture of them
    "starter": Setting(False, absent=False),
    "lpips": Setting(True),  # LPIPS with AlexNet features
    "frechet": Setting(True),  # Frechet distances of the features of frozen networks
    "inception": Setting(""),  # file of Inception-v3 weights for FID and IS; empty: not measured
    "neighbours": Setting(3, NOT_NEGATIVE),  # k of precision and recall; 0 leaves them out
    # the most frames that precision and recall are measured on
    "neighbours_examples": Setting(10_000, POSITIVE),
    "videos": Setting(2, NOT_NEGATIVE),  # clips written as mp4 files
    "samples": Setting(1000, NOT_NEGATIVE),  # generated pictures that are measured; 0: none are
}

# Sizes of the axes of the device mesh, see `bsq_jax.core.sharding`.
MESH: Section = {
    "data": Setting(-1),  # -1: all devices that the other axes leave
    "fsdp": Setting(1),
    "tensor": Setting(1),
}

SECTIONS: dict[str, Section] = {
    "model": MODEL,
    "quantizer": QUANTIZER,
    "prior": PRIOR,
    "masked_lm": MASKED_LM,
    "sampling": SAMPLING,
    "loss": LOSS,
    "discriminator": DISCRIMINATOR,
    "optimizer": OPTIMIZER,
    "data": DATA,
    "train": TRAIN,
    "eval": EVAL,
    "log": LOG,
    "mesh": MESH,
}


def declared() -> dict[str, Setting]:
    """Every setting by its dotted key, such as ``train.steps``."""
    found = dict(TOP)
    for name, section in SECTIONS.items():
        found |= {f"{name}.{key}": setting for key, setting in section.items()}
    return found
