"""The settings of a checkpoint of the published code: from shapes, its config, flags, defaults."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bsq_jax.config import default_config
from bsq_jax.core.errors import UserError
from bsq_jax.torch_import.config_keys import (
    DECODER,
    DISCRIMINATORS,
    LOSS,
    LOSS_DEFAULTS,
    LOSS_KINDS,
    MASKS,
    PLAIN,
    PLAIN_BSQ,
    VIT,
    Embedded,
)
from bsq_jax.torch_import.quantizers import find_kind, quantizer_settings
from bsq_jax.torch_import.setting import (
    DEFAULT,
    EMBEDDED,
    FLAG,
    SHAPES,
    THEIR_DEFAULT,
    Setting,
    check_said,
    shape_of,
)

HEAD_CHANNELS = 64  # of the published models
_LATER = "note: the code that trained this model lets frames see later ones"
_LEAK = f"{_LATER}, ours does not: train on before you judge it (docs/differences.md, 3)"
_WHOLE = f"{_LATER}, and so does this export (model.causality full): it cannot stream"


class Settings(NamedTuple):
    """What was found.

    Attributes:
      taken: the settings.
      unused: keys of the embedded config that nothing was taken from.
      notes: lines on what the export does otherwise than the checkpoint.
    """

    taken: list[Setting]
    unused: list[str]
    notes: list[str]


def read_settings(
    state: Mapping[str, Any],
    embedded: Mapping[str, Any],
    *,
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    quantizer: str | None = None,
    discriminator: tuple[str, Mapping[str, int]] | None = None,
) -> Settings:
    """Finds the config of a checkpoint.

    Args:
      state: arrays by their names in the published code, without ``module.``.
      embedded: the config inside the file, as plain containers; empty where there is none.
      heads: from a flag.
      image_size: (height, width) from a flag.
      quantizer: from a flag, see `bsq_jax.torch_import.quantizers`.
      discriminator: kind and sizes of the discriminator's weights, where there are some.

    Raises:
      UserError: an array is missing, or two of the sources contradict each other.
    """
    reader = _Reader(state, Embedded(embedded), [], [])
    kind = find_kind(state, reader.embedded, quantizer)
    reader.model(heads, image_size, kind[0])
    taken, notes = quantizer_settings(state, reader.embedded, kind, quantizer)
    reader.taken += taken
    reader.notes += notes
    reader.losses(discriminator, kind[0])
    return Settings(reader.taken, reader.embedded.unused(), reader.notes)


@dataclasses.dataclass
class _Reader:
    """Collects settings from the arrays' shapes and the embedded config."""

    state: Mapping[str, Any]
    embedded: Embedded
    taken: list[Setting]
    notes: list[str]

    def _take(self, key: str, value: Any, source: str) -> None:
        self.taken.append(Setting(key, value, source))

    def _shape(self, key: str, rank: int) -> tuple[int, ...]:
        return shape_of(self.state, key, rank)

    def _from_shapes(self, key: str, value: Any, theirs: str) -> None:
        """Takes what shapes tell, if the embedded config does not say something else."""
        check_said(self.embedded.number(theirs), value, theirs)
        self._take(key, value, SHAPES)

    # --- the model ---

    def model(self, heads: int | None, image_size: tuple[int, int] | None, quantizer: str) -> None:
        """Everything under ``model`` but bits, and the size of pictures under ``data``."""
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
        self.notes += self.embedded.check_fixed(frames=frames, bsq=quantizer == "bsq")
        self._take(
            "model.dtype", "float32", "exact; model.dtype=bfloat16 is faster on accelerators"
        )
        self._from_shapes("model.frames", frames, f"{VIT}.num_frames")
        self._causality(frames, tokens)
        self._from_shapes("model.patch_size", patch, f"{VIT}.patch_size")
        self._from_shapes("model.width", channels, f"{VIT}.width")
        self._from_shapes("model.layers", max(found) + 1, f"{VIT}.layers")
        self._heads(channels, heads)
        self._mlp_ratio(channels, hidden)
        self._head(self._shape(head, 2)[0] if head in self.state else 0)
        for key in ("data.resize", "data.eval_resize"):
            self._take(key, max(size), f"{size_source} (larger side of model.image_size)")

    def _causality(self, frames: int, tokens: int) -> None:
        """The attention mask; a model without a config keeps the default."""
        if not self.embedded.has(VIT):
            if frames > 1:
                self.notes.append(
                    "note: no config says which mask of attention; block-causal taken"
                )
                self.notes.append(_LEAK)
            return
        said = self.embedded.get(f"{VIT}.mask_type", str)
        block = self.embedded.get(f"{VIT}.mask_block_size", int)
        kind = (said or "none").lower()
        if kind not in MASKS:
            raise UserError(
                f"the embedded config has '{said}' for {VIT}.mask_type, which is none of "
                f"{', '.join(MASKS)}"
            )
        if kind == "block-causal" and block is not None and block > 0 and block != tokens:
            raise UserError(
                f"the embedded config has {block} for {VIT}.mask_block_size: this package has "
                f"blocks of one frame alone, which are {tokens} tokens here"
            )
        if said is None and frames == 1:
            return  # one frame that sees all of itself, whatever the name
        source = EMBEDDED if said is not None else f"{THEIR_DEFAULT}: none"
        self._take("model.causality", MASKS[kind], source)
        if frames > 1 and kind != "causal":
            self.notes.append(_LEAK if kind == "block-causal" else _WHOLE)

    def _mlp_ratio(self, channels: int, hidden: int) -> None:
        """The ratio that gives just as many hidden channels as the weights have."""
        key = f"{VIT}.mlp_ratio"
        said = self.embedded.get(key, (int, float))
        if said is not None and int(channels * said) != hidden:
            raise UserError(
                f"the embedded config has {said} for {key}, but shapes say {hidden} hidden "
                f"channels of a width of {channels}"
            )
        ratio = hidden / channels if said is None else float(said)
        if int(channels * ratio) != hidden:  # the quotient was rounded down
            ratio = math.nextafter(ratio, math.inf)
        self._take("model.mlp_ratio", ratio, SHAPES)

    def _head(self, hidden: int) -> None:
        """The decoder's pixel head."""
        for name, value in (("use_ffn_output", hidden > 0), ("dim_ffn_output", hidden)):
            said = self.embedded.get(f"{DECODER}.{name}", (int, float))
            if said is not None and said != value and (hidden or name == "use_ffn_output"):
                raise UserError(
                    f"the embedded config has {said} for {DECODER}.{name}, but shapes say {value}"
                )
        self._take("model.head_hidden", hidden, SHAPES)

    def _image_size(
        self, tokens: int, patch: int, flag: tuple[int, int] | None
    ) -> tuple[tuple[int, int], str]:
        """(height, width), which must have as many patches as the model has places; its source."""
        value = self.embedded.get(f"{VIT}.image_size", (int, list, tuple))
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
        said = self.embedded.get(f"{VIT}.heads", int)
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

    def losses(self, discriminator: tuple[str, Mapping[str, int]] | None, quantizer: str) -> None:
        """Weights of the losses, and the discriminator."""
        for theirs, ours, kind in (*(PLAIN_BSQ if quantizer == "bsq" else ()), *PLAIN):
            value, source = self._trained(theirs, kind)
            if value is not None:
                self._take(ours, value, source)
        every, source = self._trained(f"{LOSS}.disc_reg_freq", int)
        if every:
            self._take("loss.r1_every", every, source)
        elif every == 0:
            self.taken[:] = [setting for setting in self.taken if setting.key != "loss.r1"]
            self._take("loss.r1", 0.0, f"{source}: disc_reg_freq is 0")
        kind, source = self._trained(f"{LOSS}.disc_loss", str)
        if kind in LOSS_KINDS:
            self._take("loss.adversarial_kind", LOSS_KINDS[kind], source)
        elif kind is not None and discriminator is not None:
            raise UserError(
                f"the embedded config has '{kind}' for {LOSS}.disc_loss, which is none of "
                f"{', '.join(LOSS_KINDS)}: --no-discriminator leaves the discriminator out"
            )
        else:
            self.embedded.leave(f"{LOSS}.disc_loss")
        self._discriminator(discriminator)

    def _trained(self, key: str, kind: type) -> tuple[Any, str]:
        """What the config says, or what the criterion does where that says nothing; its source."""
        value = self.embedded.get(key, kind)
        name = key.removeprefix(f"{LOSS}.")
        if value is None and name in LOSS_DEFAULTS and self.embedded.has(LOSS):
            return LOSS_DEFAULTS[name], THEIR_DEFAULT
        return value, EMBEDDED

    def _discriminator(self, found: tuple[str, Mapping[str, int]] | None) -> None:
        said = self.embedded.get(f"{LOSS}.disc_type", str)
        keys = default_config().discriminator.keys()
        if found is not None:
            name, sizes = found
            if said is not None and said.lower() != name:
                raise UserError(
                    f"the embedded config has '{said}' for {LOSS}.disc_type, but the weights are "
                    f"those of '{name}' (--no-discriminator leaves them out)"
                )
            self._take("discriminator.name", name, SHAPES)
            for key, value in sizes.items():
                if key in keys:
                    self._take(f"discriminator.{key}", value, SHAPES)
        elif said is not None and said.lower() not in DISCRIMINATORS:
            self.embedded.leave(f"{LOSS}.disc_type")  # says nothing about the tokenizer
        elif said is not None:
            self._take("discriminator.name", said.lower(), EMBEDDED)
            sizes_said: Sequence[tuple[str, str]] = (
                ("disc_channel_base", "channel_base"),
                ("disc_ndf", "width"),
                ("disc_num_layers", "layers"),
            )
            for theirs, ours in sizes_said:
                value = self.embedded.get(f"{LOSS}.{theirs}", int)
                if value is not None:
                    self._take(f"discriminator.{ours}", value, EMBEDDED)
