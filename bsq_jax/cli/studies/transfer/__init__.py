r"""How a trained tokenizer does on other pictures than those it was trained for.

The model is measured as `bsq-jax evaluate` measures it, on one set of pictures after another: PSNR,
SSIM, LPIPS, which of the codes are used, bits a pixel (of a model with a prior also with that), and
how far each set is from the reference, held-out pictures of the kind that it was trained on. A set
that cannot be read is named in a line, and the others are measured. Takes some minutes on two CPU
cores with the default flags; stopped and started again it goes on.

A set is a word of text, drawings, textures, grey and microscopy, pictures that come inside
scikit-image, or NAME=SOURCE, where SOURCE is what data.val_source takes, of COCO, KITTI or DIV2K
for instance a folder or what tensorflow-datasets has prepared. A folder with a val folder in it
gives that one, any other is taken whole.

Examples:
  bsq-jax studies transfer --workdir runs/transfer
  bsq-jax studies transfer --workdir runs/transfer --model runs/prior --sets text \
    COCO=tfds:coco/2017 KITTI=folder:/data/kitti/image_2 DIV2K=folder:/data/DIV2K_valid_HR
  bsq-jax studies transfer --workdir runs/transfer --reference photographs=folder:/photographs \
    --sets cats=folder:/cats --set data.eval_resize=256
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.studies.study import Study
from bsq_jax.cli.studies.transfer.sets import OWN_DATA, PACKAGED, parse_set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    add = parser.add_argument
    add("--model", help="workdir, export or hf:// address of a tokenizer, or of a prior with "
        "its tokenizer; default: the starter model")  # fmt: skip
    add("--reference", metavar="NAME=SOURCE", help="pictures like those of the training; default: "
        "validation pictures of the model's own data, of the starter model photos")  # fmt: skip
    add("--sets", nargs="*", default=list(PACKAGED), metavar="SET",
        help=f"words of {', '.join(PACKAGED)}, or NAME=SOURCE; default: these words")  # fmt: skip
    add("--inception", default="",
        help="file of Inception-v3 weights: FID of sets with enough pictures")  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of all evaluations, such as data.eval_resize=256")  # fmt: skip


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    reference = OWN_DATA if flags.reference is None else parse_set(flags.reference)
    sets = [parse_set(text) for text in flags.sets]
    from bsq_jax.cli.studies.transfer import comparison
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.paths import local_path

    enable_compilation_cache()
    return comparison.study(
        local_path(flags.workdir), flags.model, reference, sets, flags.inception, flags.set
    )


STUDY = Study(
    "transfer",
    "a trained tokenizer on other kinds of pictures",
    __doc__,
    add_arguments,
    run,
)
