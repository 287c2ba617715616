"""Which models the study of architectures compares, and their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from bsq_jax.cli.studies.settings import muon_config, photographs_config, refuse, set_values
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError

BASE = "base"
_CHOSEN = {
    "model.encoder_layers": "use --halves",
    "model.decoder_layers": "use --halves",
    "model.encoder_width": "both halves have one width, use --widths",
    "model.decoder_width": "both halves have one width, use --widths",
}


class Point(NamedTuple):
    """One training.

    Attributes:
      change: what is not as in the base: ``base`` (nothing), ``width``, ``layers``, ``heads`` or
        ``halves``.
      width: channels of a token.
      encoder: layers of the encoder.
      decoder: layers of the decoder.
      heads: of attention.
      seed: of parameters, data order and augmentation.
    """

    change: str
    width: int
    encoder: int
    decoder: int
    heads: int
    seed: int

    @property
    def title(self) -> str:
        """What is not as in the base, in words."""
        return {
            BASE: BASE,
            "width": f"width {self.width}",
            "layers": f"layers {self.encoder}+{self.decoder}",
            "heads": f"heads {self.heads}",
            "halves": f"encoder {self.encoder}, decoder {self.decoder}",
        }[self.change]


def points(
    overrides: Sequence[str],
    widths: Sequence[int],
    layers: Sequence[int],
    heads: Sequence[int],
    halves: Sequence[tuple[int, int]],
    seeds: Sequence[int],
) -> list[Point]:
    """The trainings: the base, then one change at a time; what equals the base is left out.

    Args:
      overrides: settings of all models, each ``KEY=VALUE``; those of the base among them.
      widths: channels of a token; the number of heads follows, so that heads stay as wide.
      layers: of both halves.
      heads: at the base's width.
      halves: layers of (encoder, decoder).
      seeds: of each.

    Raises:
      UserError: an override is wrong, or a width is no multiple of the base's channels a head.
    """
    refuse(overrides, _CHOSEN)
    config = photographs_config(1, 0)
    set_values(config, overrides)
    model = config.model
    base = Point(BASE, model.width, model.layers, model.layers, model.heads, 0)
    found = [base]
    for width in sorted(set(widths)):
        if width * base.heads % base.width:
            raise UserError(
                f"--widths {width}: heads of the base have {base.width / base.heads:g} channels "
                f"({base.width} in {base.heads}), give a multiple of that"
            )
        own = width * base.heads // base.width
        found.append(base._replace(change="width", width=width, heads=own))
    found += [
        base._replace(change="layers", encoder=each, decoder=each) for each in sorted(set(layers))
    ]
    found += [base._replace(change="heads", heads=each) for each in sorted(set(heads))]
    found += [
        base._replace(change="halves", encoder=encoder, decoder=decoder)
        for encoder, decoder in sorted(set(halves), key=lambda half: (sum(half), half))
    ]
    different = {point[1:-1]: point for point in reversed(found)}  # the first of equal ones counts
    return [
        point._replace(seed=seed)
        for point in found
        if different[point[1:-1]] is point
        for seed in seeds
    ]


def point_config(point: Point, steps: int, overrides: Sequence[str]) -> ConfigDict:
    """The config of a training.

    Args:
      point: which one.
      steps: training steps.
      overrides: settings of all models, each ``KEY=VALUE``.

    Raises:
      UserError: an override is wrong, or heads do not divide the width.
    """
    config = photographs_config(steps, point.seed)
    config.loss.entropy = 0.1  # published
    # Muon, as the quickstart: its learning rate suits networks of several widths.
    config.optimizer.update(muon_config(steps, point.seed).optimizer.to_dict())
    set_values(config, overrides)
    layers = f"{point.encoder}+{point.decoder} layers"
    config.name = f"width {point.width}, {layers}, {point.heads} heads, seed {point.seed}"
    config.model.update(width=point.width, layers=point.decoder, heads=point.heads)
    config.model.encoder_layers = 0 if point.encoder == point.decoder else point.encoder
    return finalize(config)
