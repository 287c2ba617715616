"""Are generated digits what was asked for? Judged by a classifier that learned from real ones.

Command, after docs/generation.md::

    python -m benchmarks.digits --model runs/digits_lm --num 1000

The classifier is a support vector machine on the pixels of the real digits as the tokenizer sees
them; its accuracy on the validation split, which it has not seen, is printed first. Samples take
turns at the classes. Real validation digits through the tokenizer are the best that could be hoped
for.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.svm import SVC

from bsq_jax import Generator
from bsq_jax.data import transforms
from bsq_jax.data.decoding.record_frames import first_frame
from bsq_jax.data.records import label_of
from bsq_jax.data.sources import make_source

_STEPS = (1, 4, 8, 16, 64)


def real(split: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 ``[n, side, side, 3]`` and their classes."""
    source = make_source("digits", split)
    images = [
        transforms.resize_short_side(first_frame(source[index]), side)
        for index in range(len(source))
    ]
    return np.stack(images), np.array([label_of(source, i) for i in range(len(source))])


def main() -> None:
    """Prints the share of samples that are of the class asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="workdir or export of a generator")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="other numbers of steps as well")
    flags = parser.parse_args()
    generator = Generator.load(flags.model)
    side = generator.tokenizer.shape.image_height
    (pictures, labels), (unseen, wanted) = real("train", side), real("val", side)

    def features(images: np.ndarray) -> np.ndarray:
        return images[..., 0].reshape(len(images), -1) / 255.0

    classifier = SVC(C=10).fit(features(pictures), labels)

    def share(images: np.ndarray, classes: np.ndarray) -> float:
        return float((classifier.predict(features(images)) == classes).mean())

    print(
        f"classifier, {len(unseen)} real digits that it has not seen: {share(unseen, wanted):.1%}"
    )
    through = generator.tokenizer.reconstruct(unseen, dtype="uint8")
    print(f"the same digits through the tokenizer: {share(through, wanted):.1%}")
    classes = generator.labels(flags.num, None)
    settings = [{"steps": steps} for steps in _STEPS] if flags.all else [{}]
    for setting in settings:
        found = generator.sample(flags.num, seed=flags.seed, **setting)
        each = [f"{share(found[classes == k], classes[classes == k]):.0%}" for k in range(10)]
        steps = generator.sampling(**setting).steps
        print(
            f"{flags.num} samples, {steps} steps: {share(found, classes):.1%} of the class asked "
            f"for (0 to 9: {' '.join(each)})"
        )


if __name__ == "__main__":
    main()
