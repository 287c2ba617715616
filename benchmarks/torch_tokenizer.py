"""The tokenizer in plain PyTorch, with the sizes of `benchmarks.work.Work`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from benchmarks.work import Work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def visible(frames: int, tokens: int) -> torch.Tensor:
    """Which keys a query sees: bool ``[frames * tokens, frames * tokens]``, block-causal."""
    frame = torch.arange(frames).repeat_interleave(tokens)
    return frame[:, None] >= frame[None, :]


def attend(qkv: torch.Tensor, frames: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Block-causal attention ``[3, batch, head, token, channel]`` to one of the three.

    Args:
      qkv: queries, keys and values.
      frames: of the clip.
      mask: of `visible`, for one product over all frames; None: frame after frame, each with the
        keys up to its own, as is all of one frame.
    """
    query, key, value = qkv
    if mask is not None:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    tokens = query.shape[2] // frames
    ends = range(tokens, query.shape[2] + 1, tokens)
    parts = [
        functional.scaled_dot_product_attention(
            query[:, :, end - tokens : end], key[:, :, :end], value[:, :, :end]
        )
        for end in ends
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


class _Block(nn.Module):
    def __init__(self, work: Work):
        super().__init__()
        self.frames, self.heads, channels = work.frames, work.heads, work.channels
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, work.mlp), nn.Linear(work.mlp, channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, channels // self.heads)
        attended = attend(qkv.permute(2, 0, 3, 1, 4), self.frames, mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, channels))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class _Trunk(nn.Module):
    def __init__(self, work: Work):
        super().__init__()
        self.spatial = nn.Parameter(0.02 * torch.randn(work.frame_tokens, work.channels))
        times = work.frames if work.frames > 1 else 0
        self.temporal = nn.Parameter(torch.zeros(times, 1, work.channels)) if times else None
        self.before, self.after = nn.LayerNorm(work.channels), nn.LayerNorm(work.channels)
        self.blocks = nn.ModuleList(_Block(work) for _ in range(work.layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        position = self.spatial
        if self.temporal is not None:
            position = (self.temporal + self.spatial).flatten(0, 1)
        x = self.before(x + position)
        for block in self.blocks:
            x = block(x, mask)
        return self.after(x)


class TorchTokenizer(nn.Module):
    """Reconstructs uint8 pixels ``[batch, time, height, width, 3]``.

    Args:
      work: its sizes.
    """

    def __init__(self, work: Work):
        super().__init__()
        self.work, pixels = work, 3 * work.patch**2
        self.embed = nn.Linear(pixels, work.channels, bias=False)
        self.encoder, self.decoder = _Trunk(work), _Trunk(work)
        self.to_latent = nn.Linear(work.channels, work.bits)
        self.from_latent = nn.Linear(work.bits, work.channels)
        hidden = work.head or work.channels
        self.head = nn.Linear(work.channels, hidden) if work.head else None
        self.head_out = nn.Linear(hidden, pixels)
        mask = visible(work.frames, work.frame_tokens) if work.frames > 1 else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self, pixels: torch.Tensor, by_frame: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructions in patches as `patches` has them, and the loss of the quantizer.

        With `by_frame` attention takes frame after frame in place of a mask.
        """
        mask = None if by_frame else self.mask
        patches = self.patches(pixels).to(self.embed.weight.dtype)
        x = self.encoder(self.embed(patches), mask)
        with torch.autocast(DEVICE, enabled=False):
            weight, bias = self.to_latent.weight.float(), self.to_latent.bias.float()
            unit = functional.normalize(functional.linear(x.float(), weight, bias), dim=-1)
            corner = torch.where(unit > 0, 1.0, -1.0) * self.work.bits**-0.5
            quantized = unit + (corner - unit).detach()
            wanted = self.work.train and self.work.entropy
            entropy = self.entropy(unit) if wanted else unit.new_zeros(())
        x = self.decoder(self.from_latent(quantized.to(self.from_latent.weight.dtype)), mask)
        x = x if self.head is None else torch.tanh(self.head(x))
        return self.head_out(x).float(), entropy

    def entropy(self, unit: torch.Tensor) -> torch.Tensor:
        """Mean entropy of a token's bits, less that of their mean, in groups of one bit."""
        share = torch.sigmoid(4 * self.work.bits**-0.5 * unit)

        def of(share: torch.Tensor) -> torch.Tensor:
            return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).sum(-1)

        return of(share).mean() - of(share.flatten(0, -2).mean(0))

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """``[batch, token, channel row column]`` in [-1, 1] of uint8 pixels."""
        batch, time, height, width, _ = pixels.shape
        side = self.work.patch
        x = pixels.view(batch, time, height // side, side, width // side, side, 3)
        x = x.permute(0, 1, 2, 4, 6, 3, 5).reshape(batch, -1, 3 * side**2)
        return x.float() / 127.5 - 1

    def picture(self, patches: torch.Tensor) -> torch.Tensor:
        """The inverse of `patches`, clamped: uint8 pixels."""
        batch, (_, time, height, width, _) = len(patches), self.work.pixels
        side = self.work.patch
        x = ((patches.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        x = x.view(batch, time, height // side, width // side, 3, side, side)
        return x.permute(0, 1, 2, 5, 3, 6, 4).reshape(batch, time, height, width, 3)
