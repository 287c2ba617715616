"""The config inside a checkpoint of the published code: which keys are taken, checked or refused.

Values that weights tell too, or that need more than a copy, are put together in
`bsq_jax.torch_import.checkpoint_config`.

Keys that change what the model computes, in their code (commit 37d212d), and what becomes of each:

============================================  =====================================================
``model.target``                              must end in ``VITBSQModel`` or ``VITVQModel``
``model.params``
``embed_dim``                                 must be what the weights say
``l2_norm``, ``post_q_l2_norm``               must be there and True: their default is False; of a
                                              ``VITVQModel``, which has no ``post_q_l2_norm``, taken
``logit_laplace``                             must be False
``clamp_range``                               must be (-1, 1); so must ``data.zero_mean`` be True
``embed_group_size``, ``beta``, ``gamma0``,   taken, see `bsq_jax.torch_import.checkpoint_config`
``gamma``, ``zeta``, ``inv_temperature``,
``persample_entropy_compute``
``n_embed``                                   of a ``VITVQModel``: must be what the weights say
``predefined_codebook``, ``freeze_codebook``  of a ``VITVQModel``: tell a frozen codebook from a
                                              learned one
``cb_entropy_compute``                        ``group`` or ``nce``, which their code treats alike
``ckpt_path``, ``ignore_keys``,               not used: they change no output
``grad_checkpointing``,
``selective_checkpointing``
``model.params.vitconfig`` and ``dvitconfig``, which must agree
``image_size``, ``heads``                     taken
``patch_size``, ``width``, ``layers``,        must be what the weights say
``mlp_ratio``, ``num_frames``,
``use_ffn_output``, ``dim_ffn_output``
``mask_type``, ``mask_block_size``            taken; a block must be one frame
``cross_frames``                              must be True in a model of clips
``ls_init_value``                             must be None
``ln_pre``, ``ln_post``                       must be True
``act_layer``, ``norm_layer``                 must be ``gelu`` and ``layer_norm``
``drop_rate``, ``attn_drop_rate``,            not used; a note where one is not 0, because only
``drop_path_rate``                            training depends on them
anything else                                 refused: their code has no such key
``loss.params``
weights, ramps and starts of the losses       taken (`PLAIN`); `LOSS_DEFAULTS` where left out
``disc_loss``                                 taken: one of `LOSS_KINDS`; refused otherwise if the
                                              discriminator is to be taken
``disc_type`` and its sizes                   must be what the weights of a discriminator say
``disc_reg_freq``                             taken; 0 turns R1 off
anything else there, and all other groups     not used, and listed as such
============================================  =====================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bsq_jax.config.values import flatten
from bsq_jax.core.errors import UserError

PARAMS = "model.params"
VIT, DECODER = f"{PARAMS}.vitconfig", f"{PARAMS}.dvitconfig"
LOSS = "loss.params"
# Their key, ours, and its type: what is taken as it is, of models with entropy terms and of all.
PLAIN_BSQ: tuple[tuple[str, str, type], ...] = (
    (f"{PARAMS}.inv_temperature", "quantizer.inv_temperature", float),
    (f"{LOSS}.codebook_weight", "loss.entropy", float),
    (f"{LOSS}.codebook_rampup_multiplier", "loss.entropy_ramp_start", float),
    (f"{LOSS}.codebook_rampup_steps", "loss.entropy_ramp_steps", int),
)
PLAIN: tuple[tuple[str, str, type], ...] = (
    (f"{LOSS}.reconstruct_weight", "loss.l1", float),
    (f"{LOSS}.perceptual_weight", "loss.perceptual", float),
    (f"{LOSS}.disc_weight", "loss.adversarial", float),
    (f"{LOSS}.disc_start", "loss.adversarial_start", int),
    (f"{LOSS}.use_adaptive_disc_weight", "loss.adaptive", bool),
    (f"{LOSS}.disc_reg_r1", "loss.r1", float),
)
# What their criterion does where its config leaves a key out, if that is not our default.
LOSS_DEFAULTS: dict[str, Any] = {
    "codebook_weight": 1.0,
    "codebook_rampup_multiplier": 1.0,
    "codebook_rampup_steps": 0,
    "perceptual_weight": 1.0,
    "disc_weight": 1.0,
    "disc_loss": "hinge",
    "disc_reg_freq": 0,
    "use_adaptive_disc_weight": True,
}
DISCRIMINATORS = ("stylegan", "stylegan3d", "patchgan")
LOSS_KINDS = {"vanilla": "non_saturating", "hinge": "hinge"}
# Their names of attention masks, and ours.
MASKS = {"none": "full", "causal": "token_causal", "block-causal": "block_causal"}
_DROPOUT = ("drop_rate", "attn_drop_rate", "drop_path_rate")
# Keys that the model has in one position only. Theirs, what it must be, what it is where left out.
_FIXED_BSQ: tuple[tuple[str, Any, Any], ...] = (
    (f"{PARAMS}.l2_norm", True, False),
    (f"{PARAMS}.post_q_l2_norm", True, False),
)
_FIXED: tuple[tuple[str, Any, Any], ...] = (
    (f"{PARAMS}.logit_laplace", False, False),
    (f"{PARAMS}.clamp_range", [-1, 1], [-1, 1]),  # their training script always sets it
    ("data.zero_mean", True, True),  # their training script fails without it
)
_FIXED_TRUNK: tuple[tuple[str, Any], ...] = (
    ("ls_init_value", None),
    ("ln_pre", True),
    ("ln_post", True),
    ("act_layer", "gelu"),
    ("norm_layer", "layer_norm"),
)
# Keys of `vitconfig` that both halves have, with what they are where left out.
_TRUNK = {
    **dict.fromkeys(("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio")),
    **dict(_FIXED_TRUNK),
    **dict.fromkeys(_DROPOUT, 0),
    **{"num_frames": 1, "cross_frames": True, "mask_type": "none", "mask_block_size": -1},
}
_HEAD = ("use_ffn_output", "dim_ffn_output")  # of the decoder alone
_KNOWN = {  # by every model
    *("embed_dim", "l2_norm", "logit_laplace", "clamp_range", "beta", "ckpt_path", "ignore_keys"),
    *("grad_checkpointing", "selective_checkpointing", "dvitconfig"),
    *(f"vitconfig.{key}" for key in _TRUNK),
    *(f"dvitconfig.{key}" for key in (*_TRUNK, *_HEAD)),
}
_KNOWN_BSQ = {  # by VITBSQModel
    *("embed_group_size", "post_q_l2_norm", "gamma0", "gamma", "zeta", "inv_temperature"),
    *("persample_entropy_compute", "cb_entropy_compute"),
}
_KNOWN_VQ = {"n_embed", "predefined_codebook", "freeze_codebook"}  # by VITVQModel
_ENTROPIES = {"persample_entropy_compute": ("group", "analytical")}
_ENTROPIES |= {"cb_entropy_compute": ("group", "nce")}


class Embedded:
    """The config inside the file; remembers what was asked for."""

    def __init__(self, settings: Mapping[str, Any]):
        """Wraps the config as plain containers; empty where there is none."""
        self._values = dict(flatten(settings))
        self._used: set[str] = set()

    def get(self, key: str, kind: type | tuple[type, ...] = object) -> Any:
        """A value, references to other keys followed; None where there is none.

        Raises:
          UserError: it is not of this kind, or refers to a key that is not there.
        """
        value = self._values.get(key)
        self._used.add(key)
        for _ in range(10):
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            if reference is None:
                break
            if reference[1] not in self._values:
                raise UserError(
                    f"the embedded config has {value} for {key}, and no {reference[1]} of its own"
                )
            value = self._values[reference[1]]
        if value is None or value == "???":
            return None
        if kind is int and isinstance(value, float) and value == int(value):
            value = int(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise UserError(f"the embedded config has {value!r} for {key}: it cannot be that")
        return value

    def number(self, key: str) -> float | None:
        """A number, or the one that all entries of a list are."""
        value = self.get(key, (int, float, list, tuple))
        if isinstance(value, list | tuple):
            if len(value) != 2 or value[0] != value[1] or type(value[0]) is not int:
                raise UserError(
                    f"the embedded config has {list(value)} for {key}: this package has only one "
                    "number for it"
                )
            value = value[0]
        return value

    def has(self, group: str) -> bool:
        """Whether there is any key of a group, such as ``model``."""
        return any(key.startswith(f"{group}.") for key in self._values)

    def leave(self, key: str) -> None:
        """Counts a key as not used after all."""
        self._used.discard(key)

    def check_fixed(self, *, frames: int, bsq: bool) -> list[str]:
        """Refuses models that ours is not.

        Args:
          frames: of the longest clip, as the weights say.
          bsq: whether it is a ``VITBSQModel``, not a ``VITVQModel``.

        Returns:
          Lines on what training would do otherwise.

        Raises:
          UserError: a key has a value that changes what the model computes and that ours has not,
            or a key that the published code does not have; the message names it.
        """
        if not self.has("model"):
            return []
        known = _KNOWN | (_KNOWN_BSQ if bsq else _KNOWN_VQ)
        for key in self._values:
            name = key.removeprefix(f"{PARAMS}.")
            if name != key and name not in known:
                raise UserError(
                    f"the embedded config has {key}, a key that the published code does not have "
                    "for this model: what it does cannot be known"
                )
        for key, needed, default in (*(_FIXED_BSQ if bsq else ()), *_FIXED):
            value = self.get(key)
            self._check(key, value, default if value is None else value, needed)
        for name, allowed in _ENTROPIES.items():
            value = self.get(f"{PARAMS}.{name}")
            if value is not None and value not in allowed:
                raise UserError(
                    f"the embedded config has {value} for {PARAMS}.{name}: it must be "
                    f"{' or '.join(allowed)}"
                )
        self._check_decoder()
        for name, needed in _FIXED_TRUNK:
            value = self.get(f"{VIT}.{name}")
            self._check(f"{VIT}.{name}", value, needed if value is None else value, needed)
        if frames > 1:
            value = self.get(f"{VIT}.cross_frames")
            self._check(f"{VIT}.cross_frames", value, value is None or value, True)
        return self._dropout()

    def _check(self, key: str, said: Any, value: Any, needed: Any) -> None:
        if isinstance(value, str) and isinstance(needed, str):
            value = value.lower()
        if isinstance(value, tuple):
            value = list(value)
        if value == needed and isinstance(value, bool) == isinstance(needed, bool):
            return
        has = "does not have" if said is None else f"has {said} for"
        means = ", which then is False" if said is None else ""
        raise UserError(
            f"the embedded config {has} {key}{means}: this package has only the published models, "
            f"where it is {needed}"
        )

    def _check_decoder(self) -> None:
        """Refuses a decoder that is not like the encoder, whose config it otherwise shares."""
        if self._values.get(DECODER) is not None:
            if self._values[DECODER] == f"${{{VIT}}}":
                return
            raise UserError(
                f"the embedded config has {self._values[DECODER]!r} for {DECODER}: it cannot be "
                "that"
            )
        if not self.has(DECODER):
            return
        for name, default in _TRUNK.items():
            values = [self.get(f"{half}.{name}") for half in (DECODER, VIT)]
            mine, theirs = (default if value is None else value for value in values)
            if mine != theirs:
                raise UserError(
                    f"the embedded config has {mine} for {DECODER}.{name} and {theirs} for "
                    f"{VIT}.{name}: encoder and decoder must be alike"
                )

    def _dropout(self) -> list[str]:
        rates = {name: self.get(f"{VIT}.{name}") for name in _DROPOUT}
        for name in _DROPOUT:
            self.leave(f"{VIT}.{name}")
        said = ", ".join(f"{name} {rate}" for name, rate in rates.items() if rate)
        if not said:
            return []
        return [f"note: the model was trained with {said}; this package has no dropout in training"]

    def unused(self) -> list[str]:
        """Keys never asked for; groups of which nothing was taken by their name alone."""
        groups = {key.split(".")[0] for key in self._used if key in self._values}
        rest = (key for key in self._values if key not in self._used)
        return sorted({key if key.split(".")[0] in groups else key.split(".")[0] for key in rest})
