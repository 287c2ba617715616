"""The same tokenizer in plain PyTorch, to compare speed with, as a process that takes commands.

`benchmarks.peer` starts it (``python -m benchmarks.torch_peer``) and writes one JSON object a line;
each is answered by one line. It does not need JAX, and while it waits for a line it sleeps. A
training step does what `benchmarks.work.Work` says in as few passes as PyTorch offers: AdamW with
``fused=True``, and ``torch._foreach_*`` for clipping and the average.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.work import Product, Work, modes

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
            entropy = self.entropy(unit) if self.work.train else unit.new_zeros(())
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
        batch, time, height, width, _ = self.work.pixels
        side = self.work.patch
        x = ((patches.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        x = x.view(batch, time, height // side, width // side, 3, side, side)
        return x.permute(0, 1, 2, 5, 3, 6, 4).reshape(batch, time, height, width, 3)


def make_calls(work: Work) -> tuple[dict[str, Callable[[], Any]], int]:
    """What can be timed, by `benchmarks.work.modes`, and the number of parameters.

    All share the parameters and the optimizer's state, which hardly fit into memory twice.
    """
    model = TorchTokenizer(work).to(DEVICE).train(work.train)
    numbers = sum(leaf.numel() for leaf in model.parameters())
    pixels = torch.randint(0, 256, work.pixels, dtype=torch.uint8, device=DEVICE)
    low = work.dtype == "bfloat16"
    if low and not work.train:  # no copy of the weights in each call, as autocast makes one
        model = model.to(torch.bfloat16)

    def network(by_frame: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=low and work.train):
            return model(pixels, by_frame)

    @torch.no_grad()
    def reconstruct(by_frame: bool) -> torch.Tensor:
        return model.picture(network(by_frame)[0])

    def loss(by_frame: bool) -> torch.Tensor:
        patches, entropy = network(by_frame)
        error = patches - model.patches(pixels)
        error = error.abs() if work.loss == "l1" else error.square()
        return error.mean() + work.entropy * entropy

    forward = loss if work.train else reconstruct
    compiled = functools.cache(lambda: torch.compile(forward))  # when it is first needed
    forwards: dict[str, Callable[[], torch.Tensor]] = {
        "eager": lambda: forward(False),
        "compiled": lambda: compiled()(False),
        "by frame": lambda: forward(True),
    }
    if work.train:
        step = _training_step(work, model)
        return {mode: functools.partial(step, forwards[mode]) for mode in modes(work)}, numbers
    return {mode: forwards[mode] for mode in modes(work)}, numbers


def _training_step(
    work: Work, model: nn.Module
) -> Callable[[Callable[[], torch.Tensor]], torch.Tensor]:
    parameters = list(model.parameters())
    matrices = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    groups: list[dict[str, Any]] = [
        {"params": [leaf for leaf in parameters if (id(leaf) in matrices) == decay]}
        | {"weight_decay": work.weight_decay if decay else 0.0}
        for decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.99), eps=1e-8, fused=True)
    average = [leaf.detach().clone() for leaf in parameters] if work.ema else []

    def step(loss: Callable[[], torch.Tensor]) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        with torch.no_grad():
            clip([leaf.grad for leaf in parameters], work)
            optimizer.step()
            if average:
                torch._foreach_lerp_(average, parameters, 1 - work.ema)
        return value.detach()

    return step


def clip(gradients: list[Any], work: Work) -> None:
    """Scales gradients in place: each, or all together, to a norm of at most ``work.clip_norm``."""
    if work.clip == "none":
        return
    norms = torch._foreach_norm(gradients)
    if work.clip == "global":
        norms = [torch.linalg.vector_norm(torch.stack(norms))] * len(gradients)
    factors = [work.clip_norm / norm.clamp(min=work.clip_norm) for norm in norms]
    torch._foreach_mul_(gradients, factors)


def make_product(product: Product, dtype: str) -> Callable[[], Any]:
    """A matrix product of random numbers."""
    kind = getattr(torch, dtype)
    left, right = (torch.randn(shape, device=DEVICE).to(kind) for shape in product.shapes)
    left = left.mT if product.form == "atb" else left
    right = right.mT if product.form == "abt" else right
    return lambda: torch.matmul(left, right)


def seconds(function: Callable[[], Any], calls: int) -> float:
    """Seconds of a call, of so many in a row."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else torch.cpu.synchronize
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    return (time.perf_counter() - begin) / calls


class Server:
    """Answers commands; what it has made stays, by number and mode, until it is dropped."""

    def __init__(self) -> None:
        self.made: dict[int, dict[str, Callable[[], Any]]] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command, ``{"do": ...}`` with its arguments."""
        match command:
            case {"do": "describe"}:
                text = f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
                if DEVICE == "cuda":
                    text = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}"
                return {"text": text, "device": DEVICE}
            case {"do": "work", "number": number, "work": work}:
                self.made[number], parameters = make_calls(Work(**work))
                return {"parameters": parameters}
            case {"do": "product", "number": number, "product": product, "dtype": dtype}:
                self.made[number] = {"product": make_product(Product(**product), dtype)}
                return {}
            case {"do": "run", "number": number, "mode": mode, "calls": calls}:
                return {"seconds": seconds(self.made[number][mode], calls)}
            case {"do": "drop", "number": number}:
                del self.made[number]
                gc.collect()
                if DEVICE == "cuda":
                    torch.cuda.empty_cache()
                return {}
        raise ValueError(f"unknown command {command}")


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    server = Server()
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:  # the other side decides what to do without it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
