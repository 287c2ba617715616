"""Parameters of a `TokenizerModel` from a state dict in the layout of the published PyTorch code.

That code keeps linear weights as [out, in], stacks query, key and value in one matrix, and numbers
the layers, where the scan here stacks them on a leading axis. Patches are flattened in the same
order, (channel, row, column), so nothing has to be permuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.models.patches import CHANNELS
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.quantizers import LeechQuantizer, Quantizer, VectorQuantizer
from bsq_jax.quantizers.leech import numbers_of

CODEBOOK = "quantize.embedding.weight"
_QUANTIZER = "quantize."  # all other arrays of the quantizer are constants, not parameters


class _Entry(NamedTuple):
    """One parameter: where it goes, its key and shape there, and how to turn it into ours."""

    path: str
    key: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _linear(
    path: str,
    key: str,
    inputs: int,
    outputs: int,
    split_inputs: tuple[int, ...] = (),
    split_outputs: tuple[int, ...] = (),
) -> tuple[_Entry, _Entry]:
    """Kernel and bias of a linear layer whose sides may be split in several axes here."""
    to_inputs, to_outputs = split_inputs or (inputs,), split_outputs or (outputs,)
    return (
        _Entry(
            f"{path}/kernel",
            f"{key}weight",
            (outputs, inputs),
            lambda weight: weight.T.reshape(*to_inputs, *to_outputs),
        ),
        _Entry(f"{path}/bias", f"{key}bias", (outputs,), lambda bias: bias.reshape(to_outputs)),
    )


def _norm(path: str, key: str, width: int) -> tuple[_Entry, _Entry]:
    return (
        _Entry(f"{path}/scale", f"{key}.weight", (width,), _same),
        _Entry(f"{path}/bias", f"{key}.bias", (width,), _same),
    )


def _block(shape: TokenizerShape) -> Iterator[_Entry]:
    """The parameters of one layer."""
    width, hidden = shape.width, int(shape.width * shape.mlp_ratio)
    heads = (shape.heads, width // shape.heads)
    yield from _norm("norm1", "ln_1", width)
    yield from _linear(
        "attention/qkv", "attn.in_proj_", width, 3 * width, split_outputs=(3, *heads)
    )
    yield from _linear("attention/out", "attn.out_proj.", width, width, split_inputs=heads)
    yield from _norm("norm2", "ln_2", width)
    yield from _linear("mlp/up", "mlp.c_fc.", width, hidden)
    yield from _linear("mlp/down", "mlp.c_proj.", hidden, width)


def _trunk(shape: TokenizerShape, half: str) -> Iterator[_Entry]:
    """The parameters that encoder and decoder both have, but for the layers."""
    shape = shape.half(half)
    rows, columns = shape.grid
    trunk, positions = f"{half}/trunk", f"{half}/trunk/positions"
    yield _Entry(
        f"{positions}/spatial",
        f"{half}.positional_embedding",
        (rows * columns, shape.width),
        _same,
    )
    if shape.frames > 1:
        yield _Entry(
            f"{positions}/temporal",
            f"{half}.temporal_positional_embedding",
            (shape.frames, shape.width),
            _same,
        )
    yield from _norm(f"{trunk}/norm_pre", f"{half}.ln_pre", shape.width)
    yield from _norm(f"{trunk}/norm_post", f"{half}.ln_post", shape.width)


def _ends(shape: TokenizerShape) -> Iterator[_Entry]:
    """Patch embedding, projections and pixel head."""
    pixels = CHANNELS * shape.patch_time * math.prod(shape.patch)
    wide, width = shape.half("encoder").width, shape.half("decoder").width
    yield _linear("encoder/patch_embed", "encoder.conv1.", pixels, wide)[0]  # has no bias
    yield from _linear("to_latent", "quant_embed.", wide, shape.channels)
    yield from _linear("from_latent", "post_quant_embed.", shape.channels, width)
    if shape.head_hidden:
        yield from _linear("decoder/head_hidden", "decoder.ffn.0.", width, shape.head_hidden)
    features = shape.head_hidden or width
    yield from _linear("decoder/head_out", "decoder.conv_out.", features, pixels)


def parameter_name(key: str) -> str:
    """The name that a parameter has in the bare model, whatever wrappers it was saved through.

    ``module.`` (DistributedDataParallel, ModelEmaV2) may stand in front, any number of times;
    ``_orig_mod.`` (torch.compile) anywhere, because parts of a model can be compiled too.
    """
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _check_lattice(codebook: np.ndarray) -> None:
    """Refuses a codebook that has other codes than ours; the order of the rows may be any.

    No parameter depends on that order: theirs is that of a file which is not part of their code.
    """
    try:
        numbers_of(codebook)
    except UserError as error:
        raise UserError(
            f"'{CODEBOOK}': {error} (--quantizer vq or vq-cosine takes it as a learned one)"
        ) from None


def _insert(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
    *folders, name = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = value


def _codebook(quantizer: Quantizer | None) -> Iterator[_Entry]:
    """The parameters of a quantizer."""
    if isinstance(quantizer, VectorQuantizer):
        yield _Entry("quantizer/codebook", CODEBOOK, (quantizer.codes, quantizer.channels), _same)


def from_torch_state(
    state: Mapping[str, np.ndarray], shape: TokenizerShape, quantizer: Quantizer | None = None
) -> dict[str, Any]:
    """Reads the parameters of a tokenizer from a PyTorch state dict.

    Args:
      state: arrays by the names of the published code, such as ``encoder.conv1.weight``,
        with the names of wrappers in them or not (`parameter_name`).
      shape: the model to fill. The number of heads cannot be read off the arrays, so a wrong one
        goes unnoticed.
      quantizer: of the model; its codebook is taken if it learns one, and compared with ours if it
        is that of `LeechQuantizer`, where a state dict may also have none. None: a quantizer that
        has no codebook. All other constants of the quantizer are left out.

    Returns:
      The nested dict of float32 numpy arrays that `TokenizerModel` takes as ``params``.

    Raises:
      UserError: a key is missing, not wanted, there twice, or of another shape; the heads do not
        divide the width; or the codebook is not that of the Leech lattice.
    """
    if shape.width % shape.heads:
        raise UserError(f"width {shape.width} does not divide into {shape.heads} heads")
    rest: dict[str, np.ndarray] = {}
    for name, array in state.items():
        key = parameter_name(name)
        if key in rest:
            raise UserError(f"the state dict has '{key}' twice, with and without 'module.'")
        rest[key] = array
    if isinstance(quantizer, LeechQuantizer) and CODEBOOK in rest:
        _check_lattice(rest[CODEBOOK])

    def take(entry: _Entry, key: str) -> np.ndarray:
        if key not in rest:
            raise UserError(f"the state dict has no '{key}', which this model needs")
        array = np.asarray(rest.pop(key), np.float32)
        if array.shape != entry.shape:
            raise UserError(
                f"'{key}' has the shape {list(array.shape)} in the state dict, "
                f"but this model needs {list(entry.shape)}: check the model's sizes"
            )
        return entry.convert(array)

    params: dict[str, Any] = {}
    ends = (*_ends(shape), *_codebook(quantizer))
    for entry in (*_trunk(shape, "encoder"), *_trunk(shape, "decoder"), *ends):
        _insert(params, entry.path, take(entry, entry.key))
    for half in ("encoder", "decoder"):
        part = shape.half(half)
        for entry in _block(part):
            layers = [
                take(entry, f"{half}.transformer.resblocks.{layer}.{entry.key}")
                for layer in range(part.layers)
            ]
            _insert(params, f"{half}/trunk/transformer/blocks/{entry.path}", np.stack(layers))
    rest = {key: array for key, array in rest.items() if not key.startswith(_QUANTIZER)}
    if rest:
        raise UserError(
            f"the state dict has '{min(rest)}', which this model does not: check the model's sizes"
        )
    return params
