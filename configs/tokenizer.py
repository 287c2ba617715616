"""The published image tokenizers (BSQ-ViT, arXiv 2406.07548).

Command, on every host of a TPU slice or a GPU cluster, with ImageNet prepared by TFDS::

    python -m bsq_jax.main --config configs/tokenizer.py:imagenet256,bits=36 --workdir runs/in256

Variants and arguments: ``imagenet256`` (the default) or ``imagenet128``; ``bits=18`` or ``36``;
``runlocal`` shrinks everything to a minute on a laptop, to see that it runs.

Hardware and time: an image and training step at 256x256 takes 1.3 TFLOP in the network (6 FLOP a
parameter and token, and attention), 0.1 in VGG16 and 0.7 in the discriminator, so 1M steps of 256
images are 5.4e20 FLOP: about 16 days on eight accelerators that sustain 50 TFLOP/s each. This is
arithmetic, not a measurement.

Scores of the PAPER (not of this code), with the losses that are the default here: ImageNet
validation at 256x256, one bit a group,

    ============  =====  =====  ======  ======
    bits          PSNR   SSIM   LPIPS   rFID
    ============  =====  =====  ======  ======
    18            25.36  .7578  .0761   1.14
    36            27.88  .8410  .0432   0.41
    36, EMA       28.14  .8448  .0400   0.45
    ============  =====  =====  ======  ======

and at 128x128, 18 bits, groups of nine: rFID 2.66, 93.8% of the codes in use.
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config, parse_argument

VARIANTS = ("imagenet256", "imagenet128")


def get_config(argument: str = "") -> ConfigDict:
    """The config of ``variant,bits=36,runlocal``."""
    chosen = parse_argument(argument, VARIANTS, bits=36, runlocal=False)
    config = default_config()
    config.name = f"{chosen.variant}, {chosen.bits} bits"
    config.model.bits = chosen.bits
    config.data.source = "tfds:imagenet2012"
    if chosen.variant == "imagenet128":
        config.model.image_size = (128, 128)
        config.data.update(resize=128, eval_resize=128)
        config.quantizer.group_size = 9
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
    return config
