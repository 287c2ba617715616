"""Which quantizer a checkpoint of the published code has, and its settings.

Source: ``transcoder/models/bsqvit.py`` and ``transcoder/models/quantizer/vq.py`` of
github.com/zhaoyue-zephyrus/bsq-vit (commit 03d45b1), and its config
``imagenet_256x256_l24sq_stylegan_f8_fp16.yaml``. A ``VITBSQModel`` has binary spherical
quantization; a ``VITVQModel`` has a codebook, ``quantize.embedding.weight`` [codes, channels],
which is learned, or frozen: that of spherical Leech quantization, in an order of its own.

What says which it is, the first that does: ``--quantizer``, ``model.target`` of the config in the
file, arrays that one kind alone has. Where none of these does, there are 24 channels and so two
kinds that it can be, nothing is guessed: ``--quantizer`` is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsq_jax.core.errors import UserError
from bsq_jax.quantizers import LeechQuantizer
from bsq_jax.torch_import.config_keys import LOSS, PARAMS, Embedded
from bsq_jax.torch_import.setting import (
    DEFAULT,
    EMBEDDED,
    FLAG,
    SHAPES,
    Setting,
    check_said,
    shape_of,
)
from bsq_jax.torch_import.tokenizer_layout import CODEBOOK

BUFFERS = ("quantize.basis", "quantize.group_basis")  # of binary spherical quantization
_BSQ, _VQ = "VITBSQModel", "VITVQModel"
_LATENTS = "quant_embed.weight"
_LARGEST_GROUP = 16  # bits, see bsq_jax.quantizers
_LEECH = (LeechQuantizer().codes, LeechQuantizer().channels)


def find_kind(state: Mapping[str, Any], embedded: Embedded, flag: str | None) -> tuple[str, str]:
    """The kind of the quantizer, ``bsq``, ``leech`` or ``vq``, and what says so.

    Args:
      state: arrays by their names in the published code.
      embedded: the config inside the file.
      flag: one of `bsq_jax.torch_import.setting.QUANTIZERS`, or None.

    Raises:
      UserError: two of the sources contradict each other, or none says it.
    """
    told = _told(embedded)
    shown = _of_arrays(state)
    if told and shown and shown != told:
        raise UserError(
            f"the embedded config has {told} for model.target, but the state dict has "
            f"'{_own_arrays(state)[0]}' of a {shown}: the model has another quantizer"
        )
    model, source = (told, EMBEDDED) if told else (shown, SHAPES)
    if flag is not None:
        if model is not None and (flag == "bsq") != (model == _BSQ):
            raise UserError(f"--quantizer says {flag}, but the checkpoint is of a {model}")
        return flag.partition("-")[0], FLAG
    if model == _VQ:
        return _of_codebook(state, embedded, source)
    if model is None and shape_of(state, _LATENTS, 2)[0] == _LEECH[1]:
        raise UserError(
            f"nothing says which quantizer the {_LEECH[1]} channels of '{_LATENTS}' are for: give "
            "--quantizer leech or --quantizer bsq"
        )
    return "bsq", source if model else DEFAULT


def _own_arrays(state: Mapping[str, Any]) -> list[str]:
    """The arrays that one kind of model alone has."""
    return [name for name in (*BUFFERS, CODEBOOK) if name in state]


def _of_arrays(state: Mapping[str, Any]) -> str | None:
    """The class of their model that has these arrays; None if both have.

    Raises:
      UserError: no model has all of them.
    """
    names = _own_arrays(state)
    if len(names) > 1 and CODEBOOK in names:
        raise UserError(f"the state dict has '{names[0]}' and '{CODEBOOK}', of two quantizers")
    return None if not names else _VQ if CODEBOOK in names else _BSQ


def _of_codebook(state: Mapping[str, Any], embedded: Embedded, source: str) -> tuple[str, str]:
    """Which of the kinds that have a codebook."""
    if source == EMBEDDED:
        leech = _is_frozen(embedded) and _size(embedded) == _LEECH
        return "leech" if leech else "vq", EMBEDDED
    if shape_of(state, CODEBOOK, 2) == _LEECH:
        return "leech", f"{SHAPES}: that of '{CODEBOOK}', whose rows are checked"
    raise UserError(
        f"no config says whether the codes of '{CODEBOOK}' are compared by distance or by angle "
        "(l2_norm of the published code): give --quantizer vq or --quantizer vq-cosine"
    )


def _told(embedded: Embedded) -> str | None:
    """The class of their model that the config names.

    Raises:
      UserError: it is not one of the two.
    """
    target = embedded.get("model.target", str)
    name = None if target is None else target.rpartition(".")[2]
    if name not in (None, _BSQ, _VQ):
        raise UserError(
            f"the embedded config has {target} for model.target: this package reads VITBSQModel "
            "and VITVQModel of transcoder.models.bsqvit alone"
        )
    return name


def _is_frozen(embedded: Embedded) -> bool:
    predefined = embedded.get(f"{PARAMS}.predefined_codebook", str)
    return bool(embedded.get(f"{PARAMS}.freeze_codebook", bool)) and predefined is not None


def _size(embedded: Embedded) -> tuple[int | None, int | None]:
    """(codes, channels) of the codebook, as the config has them."""
    return embedded.get(f"{PARAMS}.n_embed", int), embedded.get(f"{PARAMS}.embed_dim", int)


def quantizer_settings(
    state: Mapping[str, Any], embedded: Embedded, kind: tuple[str, str], flag: str | None
) -> tuple[list[Setting], list[str]]:
    """The settings under ``quantizer`` and ``model.bits``, and notes for the user.

    Args:
      state: as `find_kind` takes it.
      embedded: the config inside the file.
      kind: what `find_kind` gives.
      flag: what it took.

    Raises:
      UserError: arrays, config and flag contradict each other.
    """
    name, source = kind
    channels = shape_of(state, _LATENTS, 2)[0]
    check_said(embedded.number(f"{PARAMS}.embed_dim"), channels, f"{PARAMS}.embed_dim")
    taken = [Setting("quantizer.name", name, source)]
    if name == "bsq":
        taken.append(Setting("model.bits", channels, SHAPES))
        return taken + _entropies(state, embedded), []
    if CODEBOOK in state or name == "vq":
        codes, width = shape_of(state, CODEBOOK, 2)
        if width != channels:
            raise UserError(
                f"'{CODEBOOK}' has the shape [{codes}, {width}], but '{_LATENTS}' gives "
                f"{channels} channels"
            )
    else:
        codes = _LEECH[0]
    check_said(embedded.get(f"{PARAMS}.n_embed", int), codes, f"{PARAMS}.n_embed")
    if name == "leech":
        _check_leech(codes, channels, embedded)
    else:
        taken += _learned(codes, channels, embedded, flag)
    bits = (codes - 1).bit_length()
    taken.append(Setting("model.bits", bits, f"{SHAPES}: {codes:,} codes"))
    return taken, _notes(name, embedded)


def _check_leech(codes: int, channels: int, embedded: Embedded) -> None:
    if (codes, channels) != _LEECH:
        raise UserError(
            f"the model has {codes:,} codes of {channels} channels: spherical Leech quantization "
            f"has {_LEECH[0]:,} of {_LEECH[1]}"
        )
    if embedded.has(PARAMS) and embedded.get(f"{PARAMS}.l2_norm", bool) is not True:
        raise UserError(
            f"the embedded config does not have True for {PARAMS}.l2_norm: spherical Leech "
            "quantization projects latents to the sphere"
        )


def _learned(codes: int, channels: int, embedded: Embedded, flag: str | None) -> list[Setting]:
    """The settings of a learned codebook."""
    if flag is not None:
        cosine, source = flag == "vq-cosine", FLAG
        if embedded.has(PARAMS) and bool(embedded.get(f"{PARAMS}.l2_norm", bool)) != cosine:
            raise UserError(
                f"--quantizer says {flag}, but the embedded config has {not cosine} for "
                f"{PARAMS}.l2_norm"
            )
    else:
        cosine, source = bool(embedded.get(f"{PARAMS}.l2_norm", bool)), EMBEDDED
    taken = [
        Setting("quantizer.codes", codes, SHAPES),
        Setting("quantizer.channels", channels, SHAPES),
        Setting("quantizer.cosine", cosine, source),
    ]
    beta = embedded.get(f"{PARAMS}.beta", float)
    if beta is not None:
        taken.append(Setting("quantizer.commitment_weight", beta, EMBEDDED))
    return taken


def _notes(name: str, embedded: Embedded) -> list[str]:
    """What training would do otherwise than theirs."""
    notes = []
    if name == "vq" and _is_frozen(embedded):
        notes.append("note: the codebook was frozen in training; here training moves it")
    said = embedded.get(f"{LOSS}.codebook_weight", float)
    if embedded.has(LOSS):
        weight = 1.0 if said is None else said
        if weight != (1.0 if name == "vq" else 0.0):
            ours = "has it once" if name == "vq" else "has none"
            notes.append(
                f"note: the loss of the codebook was trained with weight {weight:g}; this package "
                f"{ours} (docs/differences.md, 10)"
            )
    return notes


def _entropies(state: Mapping[str, Any], embedded: Embedded) -> list[Setting]:
    """Group size, and weights of the terms of the loss, of binary spherical quantization."""
    taken = []
    basis = BUFFERS[1]
    group = shape_of(state, basis, 1)[0] if basis in state else None
    said = embedded.get(f"{PARAMS}.embed_group_size", int)
    if group is not None and said is not None and group != said:
        raise UserError(
            f"the embedded config has {said} for {PARAMS}.embed_group_size, but '{basis}' "
            f"says {group}"
        )
    size, source = (said, EMBEDDED) if group is None else (group, SHAPES)
    if embedded.get(f"{PARAMS}.persample_entropy_compute") == "analytical":
        size, source = 1, f"{EMBEDDED}: 'analytical' goes bit by bit"
    if size is not None and size > _LARGEST_GROUP:
        size, source = 1, f"{DEFAULT}: groups of {size} bits are more than {_LARGEST_GROUP}"
    if size is not None:
        taken.append(Setting("quantizer.group_size", size, source))
    zeta = embedded.get(f"{PARAMS}.zeta", float)
    for theirs, ours in (("gamma0", "token_weight"), ("gamma", "codebook_weight")):
        weight = embedded.get(f"{PARAMS}.{theirs}", float)
        if weight is not None or zeta is not None:
            value = (1.0 if weight is None else weight) * (1.0 if zeta is None else zeta)
            taken.append(Setting(f"quantizer.{ours}", value, EMBEDDED))
    beta = embedded.get(f"{PARAMS}.beta", float)
    if beta is not None:
        note = "" if beta == 0.25 else " (their code uses 0.25: docs/differences.md)"
        taken.append(Setting("quantizer.commitment_weight", beta, EMBEDDED + note))
    return taken
