r"""The published tokenizers of images and of video (BSQ-ViT, arXiv 2406.07548).

Run on every host of a TPU slice or a GPU cluster, with ImageNet prepared by TFDS::

    python -m bsq_jax.main --config configs/tokenizer.py:imagenet256,bits=36 --workdir runs/in256

The video tokenizer starts from the image model, whose weights come from a workdir, an export or a
converted checkpoint; temporal positions start at zero, and spatial ones are interpolated where the
image model's pictures are larger::

    python -m bsq_jax.main --config configs/tokenizer.py:ucf101,bits=36 --workdir runs/ucf101 \
        --config.train.init=runs/in256

It reads UCF-101 (the first of its three splits) as TFDS prepares it, or video files in the folders
``train`` and ``val`` of a folder: ``--config.data.source=clips:/path/to/ucf101``.

Variants and arguments: ``imagenet256`` (the default), ``imagenet128`` or ``ucf101``; ``bits=18`` or
``36``; ``size=base`` (published), ``600m`` or ``2b`` parameters; ``runlocal`` is a smoke test that
takes a minute on a laptop. ``quantizer=`` takes another quantizer than BSQ; the number of bits then
follows from the codebook, unless ``bits=`` chooses that:

    ====================================  ==========================================================
    ``quantizer=leech``                   spherical Leech quantization (arXiv 2512.14697), 18 bits,
                                          with its authors' settings: the learning rate falls to
                                          0.01 of its peak, the discriminator's channel base is
                                          16384; it has no entropy terms and no commitment
    ``quantizer=lfq,bits=18``             MAGVIT-v2's (arXiv 2310.05737): BSQ without the sphere
    ``quantizer=fsq,levels=8x8x8x6x5``    levels of each channel (arXiv 2309.15505); or ``bits=8``,
                                          10, 13, 14 (the default) or 16 for that paper's levels
    ``quantizer=vq,codes=16384``          a learned codebook; or ``bits=14``. ``ema`` learns it as
                                          moving averages, ``cosine`` compares directions. Codes
                                          that are not used are restarted
                                          (``--config.quantizer.restart=0``: never)
    ====================================  ==========================================================

``stages=2`` makes a residual quantizer of any of them; bits are those of all stages together. With
the same settings of everything else, the kinds can be compared; only those of BSQ and Leech are
published.

The larger sizes are not from the paper: their learning rates are not tuned, and they were compiled
but never trained. docs/scaling.md has their requirements on a v5p-64 and on eight H100;
``python -m bsq_jax plan`` computes them for other machines.

Hardware and time: an image and training step at 256x256 takes 1.3 TFLOP in the network (6 FLOP per
parameter and token, and attention), 0.1 in VGG16 and 0.7 in the discriminator, so 1M steps of 256
images are 5.4e20 FLOP: about 16 days on eight accelerators that sustain 50 TFLOP/s each. A clip of
``ucf101`` takes 6.2 TFLOP in the network and about 2.5 in the other two: 100,000 steps of 64 clips
are a tenth of that. This is an estimate, not a measurement.

Scores of the PAPER (not of this code), with the losses that are the default here: ImageNet
validation at 256x256, one bit per group,

    ============  =====  =====  ======  ======
    bits          PSNR   SSIM   LPIPS   rFID
    ============  =====  =====  ======  ======
    18            25.36  .7578  .0761   1.14
    36            27.88  .8410  .0432   0.41
    36, EMA       28.14  .8448  .0400   0.45
    ============  =====  =====  ======  ======

and at 128x128, 18 bits, groups of nine: rFID 2.66, codebook usage 93.8%. UCF-101, clips of
16 frames of 128x128:

    ============  =====  =====  ======  ======
    bits          PSNR   SSIM   LPIPS   rFVD
    ============  =====  =====  ======  ======
    18            32.08  .9421  .0244   8.08
    36            33.80  .9606  .0159   4.10
    ============  =====  =====  ======  ======

Length, batch size and learning rate of the video training are not published. Here the learning rate
is that of the image model, and a step has as many frames as four of its steps have images.
"""

from ml_collections import ConfigDict

from bsq_jax.config import (
    QUANTIZER_ARGUMENTS,
    choose_quantizer,
    default_config,
    has_entropy_terms,
    parse_argument,
)
from bsq_jax.core.errors import UserError

VARIANTS = ("imagenet256", "imagenet128", "ucf101")
# Width, layers each in encoder and decoder, heads, what the backward pass recomputes.
SIZES = {
    "base": (768, 12, 12, "none"),
    "600m": (1280, 16, 10, "full"),  # heads of 128 channels match the matrix units of TPUs
    "2b": (2048, 20, 16, "full"),
}


def get_config(argument: str = "") -> ConfigDict:
    """The config of ``variant,bits=36,size=base,quantizer=bsq,runlocal``; see above."""
    chosen = parse_argument(argument, VARIANTS, size="base", runlocal=False, **QUANTIZER_ARGUMENTS)
    if chosen.size not in SIZES:
        raise UserError(f"size={chosen.size} does not exist: choose {', '.join(SIZES)}")
    config = default_config()
    config.name = f"{chosen.variant}, {choose_quantizer(config, chosen, bits=36)}"
    if chosen.size != "base":
        config.name += f", {chosen.size}"
        width, layers, heads, remat = SIZES[chosen.size]
        config.model.update(width=width, layers=layers, heads=heads, remat=remat)
        config.model.head_hidden = 4 * width
    config.data.source = "tfds:imagenet2012"
    if chosen.variant == "ucf101":
        config.model.update(image_size=(128, 128), frames=16)
        config.data.update(source="tfds:ucf101/ucf101_1", frames=16, resize=128, eval_resize=128)
        config.discriminator.name = "stylegan3d"
        config.optimizer.learning_rate = 1.024e-4
        config.train.update(steps=100_000, batch_size=64)
    if chosen.variant == "imagenet128":
        config.model.image_size = (128, 128)
        config.data.update(resize=128, eval_resize=128)
        if has_entropy_terms(config):
            config.quantizer.group_size = 9
    if chosen.quantizer == "leech":
        config.optimizer.final = 0.01
        config.discriminator.channel_base = 16384
    if chosen.runlocal:
        config.name += ", runlocal"
        config.model.update(image_size=(32, 32), width=32, layers=2, heads=2, head_hidden=64)
        config.model.dtype = "float32"
        config.discriminator.channel_base = 512
        config.data.update(source="synthetic", resize=32, eval_resize=32, threads=1)
        config.optimizer.update(learning_rate=1e-3, warmup_steps=10)
        config.train.update(
            steps=40,
            batch_size=16,
            log_every=10,
            checkpoint_every=20,
            evaluate_every=20,
            picture_every=0,
        )
        config.eval.batch_size = 16
        if chosen.variant == "ucf101":
            config.model.frames = 4
            config.discriminator.width = 4
            config.data.update(source="motion", frames=4)
            config.train.batch_size = config.eval.batch_size = 4  # as many frames as images above
    return config
