"""The settings of a checkpoint of the published code: from shapes, its config, flags, defaults."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bsq_jax.config import default_config
from bsq_jax.core.errors import UserError
from bsq_jax.core.settings import flatten

SHAPES, EMBEDDED, FLAG, DEFAULT = "shapes", "embedded config", "flag", "published default"
HEAD_CHANNELS = 64  # of the published models
_VIT, _PARAMS, _LOSS = "model.params.vitconfig", "model.params", "loss.params"
_LARGEST_GROUP = 16  # bits, see bsq_jax.quantizers
# Their key, ours, and its type: what is taken as it is.
_PLAIN = (
    (f"{_PARAMS}.inv_temperature", "quantizer.inv_temperature", float),
    (f"{_LOSS}.reconstruct_weight", "loss.l1", float),
    (f"{_LOSS}.codebook_weight", "loss.entropy", float),
    (f"{_LOSS}.codebook_rampup_multiplier", "loss.entropy_ramp_start", float),
    (f"{_LOSS}.codebook_rampup_steps", "loss.entropy_ramp_steps", int),
    (f"{_LOSS}.perceptual_weight", "loss.perceptual", float),
    (f"{_LOSS}.disc_weight", "loss.adversarial", float),
    (f"{_LOSS}.disc_start", "loss.adversarial_start", int),
    (f"{_LOSS}.use_adaptive_disc_weight", "loss.adaptive", bool),
    (f"{_LOSS}.disc_reg_r1", "loss.r1", float),
)
_DISCRIMINATORS = ("stylegan", "stylegan3d", "patchgan")
_LOSS_KINDS = {"vanilla": "non_saturating", "hinge": "hinge"}
# Switches of their model that ours has only in one position.
_FIXED = (
    (f"{_PARAMS}.l2_norm", True),
    (f"{_PARAMS}.post_q_l2_norm", True),
    (f"{_PARAMS}.logit_laplace", False),
    ("data.zero_mean", True),
)


class Setting(NamedTuple):
    """One key of our config, its value, and where that comes from."""

    key: str
    value: Any
    source: str


class Settings(NamedTuple):
    """All that was found, and the keys of the embedded config that nothing was taken from."""

    taken: list[Setting]
    unused: list[str]


def read_settings(
    state: Mapping[str, Any],
    embedded: Mapping[str, Any],
    *,
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    discriminator: tuple[str, Mapping[str, int]] | None = None,
) -> Settings:
    """Finds the config of a checkpoint.

    Args:
      state: arrays by their names in the published code, without ``module.``.
      embedded: the config inside the file, as plain containers; empty where there is none.
      heads: from a flag.
      image_size: (height, width) from a flag.
      discriminator: kind and sizes of the discriminator's weights, where there are some.

    Raises:
      UserError: an array is missing, or two of the sources contradict each other.
    """
    reader = _Reader(state, _Embedded(embedded), [])
    reader.model(heads, image_size)
    reader.quantizer()
    reader.losses(discriminator)
    reader.embedded.check_fixed()
    return Settings(reader.taken, reader.embedded.unused())


class _Embedded:
    """The config inside the file; remembers what was asked for."""

    def __init__(self, settings: Mapping[str, Any]):
        self._values = dict(flatten(settings))
        self._used: set[str] = set()

    def get(self, key: str, kind: type | tuple[type, ...] = object) -> Any:
        """A value, references to other keys followed; None where there is none."""
        value = self._values.get(key)
        self._used.add(key)
        for _ in range(10):
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            if reference is None:
                break
            value = self._values.get(reference[1])
        if value is None or value == "???":
            return None
        if kind is int and isinstance(value, float) and value == int(value):
            value = int(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise UserError(f"the embedded config has {value!r} for {key}: it cannot be that")
        return value

    def leave(self, key: str) -> None:
        """Counts a key as not used after all."""
        self._used.discard(key)

    def check_fixed(self) -> None:
        """Refuses models that ours is not."""
        for key, needed in _FIXED:
            value = self.get(key)
            if value is not None and value != needed:
                raise UserError(
                    f"the embedded config has {value} for {key}: this package has only the "
                    f"published models, where it is {needed}"
                )
        decoder = f"{_PARAMS}.dvitconfig."
        for key in [key for key in self._values if key.startswith(decoder)]:
            twin = f"{_VIT}.{key.removeprefix(decoder)}"
            if self.get(key) != self.get(twin):
                raise UserError(
                    f"the embedded config has {self.get(key)} for {key} and {self.get(twin)} for "
                    f"{twin}: encoder and decoder must be alike"
                )

    def unused(self) -> list[str]:
        """Keys never asked for; groups of which nothing was taken by their name alone."""
        groups = {key.split(".")[0] for key in self._used if key in self._values}
        rest = (key for key in self._values if key not in self._used)
        return sorted({key if key.split(".")[0] in groups else key.split(".")[0] for key in rest})


@dataclasses.dataclass
class _Reader:
    """Collects settings from the arrays' shapes and the embedded config."""

    state: Mapping[str, Any]
    embedded: _Embedded
    taken: list[Setting]

    def _take(self, key: str, value: Any, source: str) -> None:
        self.taken.append(Setting(key, value, source))

    def _shape(self, key: str, rank: int) -> tuple[int, ...]:
        if key not in self.state:
            raise UserError(f"the state dict has no '{key}', which every model of this kind has")
        shape = tuple(self.state[key].shape)
        if len(shape) != rank or not math.prod(shape):
            raise UserError(f"'{key}' has the shape {list(shape)}, not {rank} sizes")
        return shape

    def _from_shapes(self, key: str, value: Any, theirs: str) -> None:
        """Takes what shapes tell, if the embedded config does not say something else."""
        said = self.embedded.get(theirs, (int, float))
        if said is not None and said != value:
            raise UserError(f"the embedded config has {said} for {theirs}, but shapes say {value}")
        self._take(key, value, SHAPES)

    # --- the model ---

    def model(self, heads: int | None, image_size: tuple[int, int] | None) -> None:
        """Everything under ``model``, and the size of pictures under ``data``."""
        channels, inputs = self._shape("encoder.conv1.weight", 2)
        patch = math.isqrt(inputs // 3)
        if 3 * patch**2 != inputs:
            raise UserError(f"'encoder.conv1.weight' takes {inputs} numbers: not a square patch")
        tokens = self._shape("encoder.positional_embedding", 2)[0]
        size, size_source = self._image_size(tokens, patch, image_size)
        temporal = "encoder.temporal_positional_embedding"
        frames = self._shape(temporal, 2)[0] if temporal in self.state else 1
        pattern = re.compile(r"encoder\.transformer\.resblocks\.(\d+)\.")
        found = [int(match[1]) for match in map(pattern.match, self.state) if match]
        if not found:
            raise UserError("the state dict has no 'encoder.transformer.resblocks.0.ln_1.weight'")
        hidden = self._shape("encoder.transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
        head = "decoder.ffn.0.weight"
        bits = self._shape("quant_embed.weight", 2)[0]
        self._take("model.frames", frames, SHAPES)
        self._from_shapes("model.patch_size", patch, f"{_VIT}.patch_size")
        self._from_shapes("model.bits", bits, f"{_PARAMS}.embed_dim")
        self._from_shapes("model.width", channels, f"{_VIT}.width")
        self._from_shapes("model.layers", max(found) + 1, f"{_VIT}.layers")
        self._heads(channels, heads)
        self._from_shapes("model.mlp_ratio", hidden / channels, f"{_VIT}.mlp_ratio")
        head_hidden = self._shape(head, 2)[0] if head in self.state else 0
        self._take("model.head_hidden", head_hidden, SHAPES)
        for key in ("data.resize", "data.eval_resize"):
            self._take(key, max(size), f"{size_source} (larger side of model.image_size)")

    def _image_size(
        self, tokens: int, patch: int, flag: tuple[int, int] | None
    ) -> tuple[tuple[int, int], str]:
        """(height, width), which must have as many patches as the model has places; its source."""
        value = self.embedded.get(f"{_VIT}.image_size", (int, list, tuple))
        if isinstance(value, int):
            value = (value, value)
        side = math.isqrt(tokens) * patch
        if flag is not None:
            size, source = flag, FLAG
        elif value is not None:
            size, source = tuple(value), EMBEDDED
        else:
            size, source = (side, side), DEFAULT
        said = f"{'x'.join(map(str, size))} ({source})"
        places = f"encoder.positional_embedding has {tokens} places"
        hint = f"give --image-size HxW with {tokens} patches of {patch}x{patch}"
        if len(size) != 2 or not all(type(n) is int and n > 0 and n % patch == 0 for n in size):
            raise UserError(f"{said} does not divide into patches of {patch}x{patch}: {hint}")
        rows, columns = (n // patch for n in size)
        if rows * columns != tokens and source == DEFAULT:
            raise UserError(f"{places}, which make no square: {hint}")
        if rows * columns != tokens:
            raise UserError(
                f"{said} makes {rows}x{columns} = {rows * columns} patches of {patch}x{patch}, "
                f"but {places}: {hint}"
            )
        self._take("model.image_size", size, source)
        return size, source

    def _heads(self, channels: int, flag: int | None) -> None:
        said = self.embedded.get(f"{_VIT}.heads", int)
        if flag is not None:
            heads, source = flag, FLAG
        elif said is not None:
            heads, source = said, EMBEDDED
        else:
            heads, source = channels // HEAD_CHANNELS, f"{DEFAULT}: {HEAD_CHANNELS} channels a head"
        if heads < 1 or channels % heads:
            raise UserError(
                f"{heads} heads ({source}) do not divide the width {channels} of "
                "'encoder.conv1.weight': give --heads N"
            )
        self._take("model.heads", heads, source)

    # --- what training needs ---

    def quantizer(self) -> None:
        """Group size, temperature and weights of the entropy terms."""
        basis = "quantize.group_basis"
        group = self._shape(basis, 1)[0] if basis in self.state else None
        said = self.embedded.get(f"{_PARAMS}.embed_group_size", int)
        if group is not None and said is not None and group != said:
            raise UserError(
                f"the embedded config has {said} for {_PARAMS}.embed_group_size, but '{basis}' "
                f"says {group}"
            )
        size, source = (said, EMBEDDED) if group is None else (group, SHAPES)
        if self.embedded.get(f"{_PARAMS}.persample_entropy_compute") == "analytical":
            size, source = 1, f"{EMBEDDED}: 'analytical' goes bit by bit"
        if size is not None and size > _LARGEST_GROUP:
            size, source = 1, f"{DEFAULT}: groups of {size} bits are more than {_LARGEST_GROUP}"
        if size is not None:
            self._take("quantizer.group_size", size, source)
        zeta = self.embedded.get(f"{_PARAMS}.zeta", float)
        for theirs, ours in (("gamma0", "token_weight"), ("gamma", "codebook_weight")):
            weight = self.embedded.get(f"{_PARAMS}.{theirs}", float)
            if weight is not None or zeta is not None:
                value = (1.0 if weight is None else weight) * (1.0 if zeta is None else zeta)
                self._take(f"quantizer.{ours}", value, EMBEDDED)
        beta = self.embedded.get(f"{_PARAMS}.beta", float)
        if beta is not None:
            note = "" if beta == 0.25 else " (their code uses 0.25: docs/differences.md)"
            self._take("quantizer.commitment_weight", beta, EMBEDDED + note)

    def losses(self, discriminator: tuple[str, Mapping[str, int]] | None) -> None:
        """Weights of the losses, and the discriminator."""
        for theirs, ours, kind in _PLAIN:
            value = self.embedded.get(theirs, kind)
            if value is not None:
                self._take(ours, value, EMBEDDED)
        every = self.embedded.get(f"{_LOSS}.disc_reg_freq", int)
        if every:
            self._take("loss.r1_every", every, EMBEDDED)
        elif every == 0:
            self.taken[:] = [setting for setting in self.taken if setting.key != "loss.r1"]
            self._take("loss.r1", 0.0, f"{EMBEDDED}: disc_reg_freq is 0")
        kind = self.embedded.get(f"{_LOSS}.disc_loss", str)
        if kind in _LOSS_KINDS:
            self._take("loss.adversarial_kind", _LOSS_KINDS[kind], EMBEDDED)
        elif kind is not None and discriminator is not None:
            raise UserError(
                f"the embedded config has '{kind}' for {_LOSS}.disc_loss, which is none of "
                f"{', '.join(_LOSS_KINDS)}: --no-discriminator leaves the discriminator out"
            )
        else:
            self.embedded.leave(f"{_LOSS}.disc_loss")
        self._discriminator(discriminator)

    def _discriminator(self, found: tuple[str, Mapping[str, int]] | None) -> None:
        said = self.embedded.get(f"{_LOSS}.disc_type", str)
        keys = default_config().discriminator.keys()
        if found is not None:
            name, sizes = found
            if said is not None and said.lower() != name:
                raise UserError(
                    f"the embedded config has '{said}' for {_LOSS}.disc_type, but the weights are "
                    f"those of '{name}' (--no-discriminator leaves them out)"
                )
            self._take("discriminator.name", name, SHAPES)
            for key, value in sizes.items():
                if key in keys:
                    self._take(f"discriminator.{key}", value, SHAPES)
        elif said is not None and said.lower() not in _DISCRIMINATORS:
            self.embedded.leave(f"{_LOSS}.disc_type")  # says nothing about the tokenizer
        elif said is not None:
            self._take("discriminator.name", said.lower(), EMBEDDED)
            sizes_said: Sequence[tuple[str, str]] = (
                ("disc_channel_base", "channel_base"),
                ("disc_ndf", "width"),
                ("disc_num_layers", "layers"),
            )
            for theirs, ours in sizes_said:
                value = self.embedded.get(f"{_LOSS}.{theirs}", int)
                if value is not None:
                    self._take(f"discriminator.{ours}", value, EMBEDDED)
