"""What fixes the parameters of a tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Any

from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.windows import Windows
from bsq_jax.models.own_positions import own_sums
from bsq_jax.models.positions import FramePositions, check_length, frame_positions


@dataclasses.dataclass(frozen=True)
class TokenizerShape:
    """The numbers that fix a tokenizer's parameters; all of an export's model config.

    Attributes:
      image_height: pixels, a multiple of the patch's; of the size that the model is made for.
      image_width: pixels, likewise.
      frames: longest clip, in frames of the video; 1 for an image model, which then has no
        temporal embedding.
      patch_size: side of a patch in pixels, or its (height, width); read it as `patch`.
      bits: bits a token, L.
      width: channels of a token inside a transformer whose own width is not given.
      layers: blocks of one whose own number is not given.
      heads: attention heads of a transformer of `width`; all heads are equally wide, so that one of
        another width has more or fewer.
      mlp_ratio: hidden width of a block's MLP over `width`.
      head_hidden: hidden width of the decoder's pixel head; 0 for a single linear layer.
      head_channels: of the residual convolutions after it; 0 for none.
      positions: kind of positions, see `bsq_jax.models.positions`.
      causality: kind of causality, see `bsq_jax.models.attention.causality`.
      window: frames of tokens that a token sees, its own included; 0 for no limit.
      min_bits: fewest bits of a token that the decoder gets in training; 0: always all.
      prefixes: the numbers of first bits that a token can be decoded from, increasing; the last is
        L. Those from `min_bits` on or, where that is 0, whole stages of the quantizer.
      channels: of the latents that the quantizer takes.
      spatial_window: side in tokens of the windows of a frame that attention stays within; 0: it
        sees whole frames.
      encoder_layers: blocks of the encoder; 0: `layers`.
      decoder_layers: of the decoder, likewise.
      encoder_width: channels of a token inside the encoder; 0: `width`.
      decoder_width: inside the decoder, likewise.
      patch_time: frames of the video that a token is of; the first frame has tokens of its own.
    """

    image_height: int
    image_width: int
    frames: int
    patch_size: int | tuple[int, int]
    bits: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    head_hidden: int
    head_channels: int
    positions: str
    causality: str
    window: int
    min_bits: int
    prefixes: tuple[int, ...]
    channels: int
    spatial_window: int = 0
    encoder_layers: int = 0
    decoder_layers: int = 0
    encoder_width: int = 0
    decoder_width: int = 0
    patch_time: int = 1

    @property
    def patch(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        size = self.patch_size
        return (size, size) if isinstance(size, int) else size

    def half(self, name: str) -> TokenizerShape:
        """The shape that has the width, layers and heads of the ``encoder`` or ``decoder``."""
        width = getattr(self, f"{name}_width") or self.width
        return dataclasses.replace(
            self,
            width=width,
            layers=getattr(self, f"{name}_layers") or self.layers,
            heads=width * self.heads // self.width,
            encoder_layers=0,
            decoder_layers=0,
            encoder_width=0,
            decoder_width=0,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a frame of the model's own size as (rows, columns)."""
        return self.image_height // self.patch[0], self.image_width // self.patch[1]

    @property
    def table(self) -> tuple[int, int]:
        """(rows, columns) of the learned spatial positions: of a window, or of the own size."""
        return (self.spatial_window,) * 2 if self.positions == "window" else self.grid

    @property
    def tokens(self) -> int:
        """Tokens of a frame of the model's own size."""
        return self.grid[0] * self.grid[1]

    @property
    def visibility(self) -> Causality:
        """Which tokens are visible to a token in attention."""
        return Causality(self.causality, self.window)

    def token_frames(self, frames: Any) -> Any:
        """Frames of tokens of a clip of so many frames: the first one's, and those of groups.

        Args:
          frames: an integer of at least 1, or an array of them.
        """
        if self.patch_time == 1:
            return frames
        return 1 - (1 - frames) // self.patch_time

    def video_frames(self, token_frames: int) -> int:
        """Frames that so many frames of tokens decode to."""
        return 1 + (token_frames - 1) * self.patch_time

    def windows(self, rows: int, columns: int) -> Windows | None:
        """The windows of frames of a grid that attention stays within; None: whole frames."""
        return Windows(rows, columns, self.spatial_window) if self.spatial_window else None

    def frame_positions(
        self,
        frames: int,
        first: int = 0,
        grid: tuple[int, int] | None = None,
        half: str = "encoder",
    ) -> FramePositions:
        """What one half of the network needs to know of frames ``first .. first + frames - 1``.

        These are frames of tokens, which are frames of the video where `patch_time` is 1.

        Args:
          frames: how many.
          first: place of the first.
          grid: their (rows, columns); None: the model's own.
          half: ``encoder`` or ``decoder``; they differ where the widths do.

        Raises:
          UserError: there are no positions for them.
        """
        check_length(self.positions, self.video_frames(first + frames) - 1, self.frames)
        shape = self.half(half)
        found = frame_positions(self.positions, first, frames, shape.width, shape.heads)
        if ":" in self.positions:
            added = own_sums(self.positions, found.number, grid or self.grid, shape.width)
            found = found._replace(added=added)
        return found
