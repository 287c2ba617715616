"""The arguments of config files that choose a quantizer, and what they set."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.parsing import set_value
from bsq_jax.config.quantizer import stage_bits
from bsq_jax.config.settings import QUANTIZER
from bsq_jax.core.errors import UserError
from bsq_jax.core.text import listed

# The keys for `parse_argument`, with their defaults; 0 and empty: what the quantizer has.
QUANTIZER_ARGUMENTS: dict[str, Any] = {
    "quantizer": "bsq",
    "bits": 0,  # of a token, all stages together
    "stages": 1,
    "levels": "",  # fsq: separated by x
    "codes": 0,  # vq
    "cosine": False,  # vq
    "ema": False,  # vq
}
# Levels that the FSQ paper (arXiv 2309.15505, table 1) recommends, by the bits of their tokens.
LEVELS = {
    8: (8, 6, 5),
    10: (8, 5, 5, 5),
    13: (7, 5, 5, 5, 5),
    14: (8, 8, 8, 6, 5),
    16: (8, 8, 8, 5, 5, 5),
}
RESTART = 0.1  # measured, see `bsq_jax.training.tasks.codebooks`
_MOST_CODES = 25  # bits, more than `finalize` accepts: it has the words for the error


def choose_quantizer(config: ConfigDict, chosen: ConfigDict, *, bits: int) -> str:
    """Sets ``config.quantizer`` and ``config.model.bits`` from a config file's argument.

    Args:
      config: changed in place; `finalize` checks what fits together.
      chosen: of `parse_argument`, with `QUANTIZER_ARGUMENTS` among its keys.
      bits: of a token of the kinds that have any number of bits (bsq, lfq), unless chosen.

    Returns:
      What was chosen, for ``config.name``, such as ``36 bits`` or ``leech, 2 stages, 36 bits``.

    Raises:
      UserError: levels that are no numbers, or bits for which there are no recommended levels.
    """
    quantizer, stages = config.quantizer, max(chosen.stages, 1)
    quantizer.update(name=chosen.quantizer, stages=chosen.stages, cosine=chosen.cosine)
    each = max(chosen.bits, 0) // stages
    if chosen.levels:
        set_value(config, "quantizer.levels", chosen.levels)
    elif chosen.quantizer == "fsq" and chosen.bits:
        if each not in LEVELS:
            raise UserError(
                f"bits={chosen.bits} and stages={chosen.stages}: there are recommended levels of "
                f"fsq for {listed(list(LEVELS))} bits a stage; give others as levels=8x8x8x6x5"
            )
        quantizer.levels = LEVELS[each]
    if chosen.codes:
        quantizer.codes = chosen.codes
    elif chosen.quantizer == "vq" and chosen.bits:
        quantizer.codes = 2 ** min(each, _MOST_CODES)
    if chosen.ema:
        quantizer.learning = "ema"
    if chosen.quantizer == "vq":
        quantizer.restart = RESTART
    own = stage_bits(quantizer)
    # Left to `finalize` where they follow, so that the command line can set levels or codes.
    config.model.bits = chosen.bits or (bits if own is None else 0)
    kind = [] if chosen.quantizer == QUANTIZER["name"].default else [chosen.quantizer]
    if stages > 1:
        kind.append(f"{stages} stages")
    return ", ".join([*kind, f"{config.model.bits or (own or 0) * stages} bits"])
