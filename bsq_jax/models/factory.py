"""Models from a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from bsq_jax.core.errors import UserError
from bsq_jax.core.text import listed
from bsq_jax.models.discriminators import (
    PatchGanDiscriminator,
    StyleGan3dDiscriminator,
    StyleGanDiscriminator,
)
from bsq_jax.models.discriminators.patchgan import map_side
from bsq_jax.models.discriminators.stylegan import check_frames, sizes
from bsq_jax.models.masked_lm.model import MaskedLm, MaskedLmShape
from bsq_jax.models.positions import check_width
from bsq_jax.models.prior.neighbourhood_prior import NeighbourhoodPrior
from bsq_jax.models.prior.shape import WHOLE_TILE, PriorShape
from bsq_jax.models.prior.tile_prior import TilePrior
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.models.transformer import Compute
from bsq_jax.quantizers import Quantizer, make_quantizer

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Discriminator = StyleGanDiscriminator | StyleGan3dDiscriminator | PatchGanDiscriminator
Prior = TilePrior | NeighbourhoodPrior


def make_tokenizer(config: ConfigDict) -> TokenizerModel:
    """The tokenizer that ``config.model`` and ``config.quantizer`` describe.

    Raises:
      UserError: its kind of positions does not fit its width, or its tokens cannot be decoded from
        ``model.min_bits`` bits.
    """
    model = config.model
    height, width = model.image_size
    quantizer = make_quantizer(config)
    shape = TokenizerShape(
        image_height=height,
        image_width=width,
        frames=model.frames,
        patch_size=model.patch_size,
        bits=quantizer.bits,
        channels=quantizer.channels,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        head_hidden=model.head_hidden,
        head_channels=model.head_channels,
        positions=model.positions,
        causality=model.causality,
        window=model.window,
        min_bits=model.min_bits,
        prefixes=_prefixes(quantizer, model.min_bits),
        spatial_window=model.spatial_window,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        encoder_width=model.encoder_width,
        decoder_width=model.decoder_width,
        patch_time=model.patch_time,
    )
    for half in ("encoder", "decoder"):
        part = shape.half(half)
        check_width(model.positions, part.width, part.heads)
    return TokenizerModel(
        shape=shape,
        quantizer=quantizer,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        attention=model.attention,
    )


def _prefixes(quantizer: Quantizer, min_bits: int) -> tuple[int, ...]:
    """The numbers of first bits that tokens are decoded from; see `TokenizerShape`."""
    able = quantizer.prefixes
    if min_bits and min_bits not in able:
        raise UserError(
            f"config.model.min_bits is {min_bits}: tokens of this quantizer are decoded from their "
            f"first {listed(able)} bits"
        )
    if not min_bits and quantizer.layout.stages == 1:  # other decoders know whole tokens alone
        return able[-1:]
    return tuple(number for number in able if number >= min_bits)


def make_prior(config: ConfigDict) -> Prior:
    """The prior that ``config.prior`` describes, over the tokens of ``config.model``."""
    prior, tokenizer = config.prior, make_tokenizer(config)
    of_tiles = prior.reach == WHOLE_TILE
    rows, columns = tokenizer.shape.grid if of_tiles else (0, 0)
    shape = PriorShape(
        rows,
        columns,
        layout=tokenizer.quantizer.layout,
        width=prior.width,
        layers=prior.layers,
        heads=prior.heads,
        hidden=prior.hidden,
        window=prior.window,
        order=prior.order,
        reach=prior.reach,
    )
    return TilePrior(shape) if of_tiles else NeighbourhoodPrior(shape)


def make_masked_lm(config: ConfigDict) -> MaskedLm:
    """The masked language model of ``config.masked_lm``, on the tokens of ``config.model``."""
    masked, tokenizer, model = config.masked_lm, make_tokenizer(config), config.model
    return MaskedLm(
        MaskedLmShape(
            *tokenizer.shape.grid,
            frames=masked.frames,
            layout=tokenizer.quantizer.layout,
            group_size=masked.group_size,
            width=masked.width,
            layers=masked.layers,
            heads=masked.heads,
            mlp_ratio=masked.mlp_ratio,
            classes=masked.classes,
        ),
        Compute(jnp.dtype(model.dtype), model.remat, model.attention),
    )


def make_discriminator(config: ConfigDict) -> Discriminator:
    """The discriminator that ``config.discriminator`` describes, for the pixels of the training.

    Raises:
      UserError: an unknown name, or frames of ``config.model`` or ``data.sizes`` that it cannot
        take.
    """
    from bsq_jax.config.sizes import trained_sizes  # only here, for ml_collections

    settings, built_for = config.discriminator, tuple(config.model.image_size)
    trained = trained_sizes(config)
    dtype, adaptive = jnp.dtype(config.model.dtype), settings.pooling == "adaptive"
    if settings.name.startswith("stylegan") and not adaptive:
        _check_one_size(settings.name, trained, built_for)
    match settings.name:
        case "stylegan":
            for size in trained:
                if adaptive:
                    check_frames(*size, built_for)
                else:
                    sizes(*size)
            return StyleGanDiscriminator(
                channel_base=settings.channel_base,
                channel_max=settings.channel_max,
                stddev_group=settings.stddev_group,
                dtype=dtype,
                built_for=built_for if adaptive else None,
            )
        case "stylegan3d":
            if config.model.frames == 1:
                raise UserError(
                    "discriminator stylegan3d is for clips, but model.frames is 1: "
                    "choose discriminator.name=stylegan"
                )
            return StyleGan3dDiscriminator(
                width=settings.width,
                stddev_group=settings.stddev_group,
                dtype=dtype,
                pooled=adaptive,
            )
        case "patchgan":
            for size in trained:
                for side in size:
                    map_side(side, settings.layers)
            return PatchGanDiscriminator(width=settings.width, layers=settings.layers, dtype=dtype)
    raise UserError(
        f"discriminator.name is '{settings.name}': it must be one of stylegan, stylegan3d, patchgan"
    )


def _check_one_size(
    name: str, trained: tuple[tuple[int, int], ...], built_for: tuple[int, ...]
) -> None:
    """Refuses sizes that a discriminator without pooling has no last layers for."""
    for height, width in trained:
        if (height, width) != built_for:
            raise UserError(
                f"discriminator.name={name} with pooling=none takes frames of model.image_size "
                f"{built_for[0]}x{built_for[1]} alone, but data.sizes has {height}x{width}: set "
                "discriminator.pooling=adaptive or discriminator.name=patchgan"
            )
