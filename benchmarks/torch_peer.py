"""The same tokenizer in plain PyTorch, to compare speed with: ours, for nothing but timing.

Pre-norm blocks, `functional.scaled_dot_product_attention`, autocast to 16 bits, `torch.compile`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        attended = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class _Trunk(nn.Module):
    def __init__(self, tokens: int, width: int, layers: int, heads: int):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.blocks(self.before(x + self.position)))


class TorchTokenizer(nn.Module):
    """Patches ``[batch, token, 3 * patch * patch]`` to their reconstruction.

    Args:
      tokens: of a picture.
      width: channels of a token.
      layers: of each half.
      heads: of attention.
      bits: of a token.
      patch: side of a patch.
      hidden: of the pixel head.
    """

    def __init__(
        self, tokens: int, width: int, layers: int, heads: int, bits: int, patch: int, hidden: int
    ):
        super().__init__()
        pixels = 3 * patch**2
        self.embed = nn.Linear(pixels, width, bias=False)
        self.encoder = _Trunk(tokens, width, layers, heads)
        self.to_latent, self.from_latent = nn.Linear(width, bits), nn.Linear(bits, width)
        self.decoder = _Trunk(tokens, width, layers, heads)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, pixels))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """As the network that is measured: signs on the sphere, straight-through."""
        latent = functional.normalize(
            self.to_latent(self.encoder(self.embed(patches))).float(), dim=-1
        )
        corner = torch.sign(latent) * latent.shape[-1] ** -0.5
        quantized = latent + (corner - latent).detach()
        return self.head(self.decoder(self.from_latent(quantized)))


def seconds_per_call(
    model: TorchTokenizer, batch: int, tokens: int, *, train: bool, runs: int, bfloat16: bool
) -> tuple[float, str]:
    """Median seconds of a forward pass, or of a step of AdamW on the L1 loss; and how it ran."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train(train)
    patches = torch.randn(batch, tokens, model.embed.in_features, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device == "cuda")
    how, forward = "torch.compile", torch.compile(model)

    def call(function: Callable[..., Any]) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            if not train:
                with torch.no_grad():
                    function(patches)
                return
            loss = (function(patches) - patches).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    try:
        call(forward)
    except Exception as error:  # whatever the compiler meets
        how, forward = f"eager, for torch.compile failed: {type(error).__name__}", model
    for _ in range(3):
        call(forward)
    wait()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        for _ in range(3):
            call(forward)
        wait()
        times.append((time.perf_counter() - begin) / 3)
    return sorted(times)[len(times) // 2], f"{how}, {device}"
