"""Training the tokenizer in plain PyTorch: its step, and a whole training on given crops.

A step does what `benchmarks.work.Work` says in as few passes as PyTorch offers: AdamW with
``fused=True``, and ``torch._foreach_*`` for clipping and the average. Neither JAX nor NumPy is
needed; pixels come and go as raw bytes in files.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.torch_tokenizer import DEVICE, TorchTokenizer
from benchmarks.work import Schedule, Work

_WARM = 20  # first steps whose time does not count
_BATCH = 64  # pictures that are reconstructed at once


def loss_of(
    work: Work, original: torch.Tensor, patches: torch.Tensor, entropy: torch.Tensor
) -> torch.Tensor:
    """The loss of a batch: mean error of ``[batch, token, value]``, and the entropy terms."""
    error = patches - original
    error = error.abs() if work.loss == "l1" else error.square()
    return error.mean() + work.entropy * entropy


class TrainingStep:
    """One step of the optimizer for each call.

    Args:
      work: clipping, weight decay and average.
      model: its parameters are trained.
    """

    def __init__(self, work: Work, model: nn.Module):
        self._work, self._parameters, self._done = work, list(model.parameters()), 0
        matrices = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
        groups: list[dict[str, Any]] = [
            {"params": [leaf for leaf in self._parameters if (id(leaf) in matrices) == decay]}
            | {"weight_decay": work.weight_decay if decay else 0.0}
            for decay in (True, False)
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=1e-4, betas=(0.9, 0.99), eps=1e-8, fused=True
        )
        self._average = [leaf.detach().clone() for leaf in self._parameters] if work.ema else []

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the steps that follow."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A step down the gradient of what `loss` returns; its value."""
        self._optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        with torch.no_grad():
            clip([leaf.grad for leaf in self._parameters], self._work)
            self._optimizer.step()
            if self._average:
                # A small decay at the start, as `bsq_jax.training.optimizer.update_ema`.
                keep = min(self._work.ema, (1 + self._done) / (10 + self._done))
                torch._foreach_lerp_(self._average, self._parameters, 1 - keep)
        self._done += 1
        return value.detach()

    @torch.no_grad()
    def use_average(self) -> None:
        """Replaces the parameters by their average, where one is kept."""
        if self._average:
            torch._foreach_copy_(self._parameters, self._average)


def clip(gradients: list[Any], work: Work) -> None:
    """Scales gradients in place: each, or all together, to a norm of at most ``work.clip_norm``."""
    if work.clip == "none":
        return
    norms = torch._foreach_norm(gradients)
    if work.clip == "global":
        norms = [torch.linalg.vector_norm(torch.stack(norms))] * len(gradients)
    factors = [work.clip_norm / norm.clamp(min=work.clip_norm) for norm in norms]
    torch._foreach_mul_(gradients, factors)


def initialize(model: nn.Module) -> None:
    """The published random weights: normal of deviation 0.02 cut at two of them, biases zero."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def train(
    work: Work, schedule: Schedule, *, seed: int, crops: str, pictures: str, reconstructions: str
) -> dict[str, Any]:
    """Trains from random weights, and reconstructs pictures with the averaged ones.

    Args:
      work: a training step.
      schedule: how many, and their learning rate.
      seed: of the weights.
      crops: file of the training pixels, uint8 ``[steps * batch, height, width, 3]``.
      pictures: file of what is to be reconstructed, uint8 ``[picture, height, width, 3]``; empty:
        nothing.
      reconstructions: where these are written, of the same size.

    Returns:
      ``seconds`` a step, without the first steps, and the number of ``parameters``.
    """
    torch.manual_seed(seed)
    model = TorchTokenizer(work)
    initialize(model)
    model = model.to(DEVICE)
    step = TrainingStep(work, model)

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return loss_of(work, model.patches(pixels), *model(pixels))

    batches = _open(crops, work).split(work.batch)
    begin, warm = time.perf_counter(), min(_WARM, schedule.steps // 2)
    for number in range(schedule.steps):
        if number == warm:
            begin = time.perf_counter()
        pixels = batches[number].to(DEVICE)
        step.set_rate(schedule.rate(number))
        value = step(functools.partial(loss, pixels))
    value.item()  # waits
    seconds = (time.perf_counter() - begin) / (schedule.steps - warm)
    if pictures:
        step.use_average()
        _reconstruct(model, _open(pictures, work), reconstructions)
    return {"seconds": seconds, "parameters": sum(leaf.numel() for leaf in model.parameters())}


def _open(path: str, work: Work) -> torch.Tensor:
    """Pixels ``[picture, 1, height, width, 3]`` of a file, which is not read as a whole."""
    size = pathlib.Path(path).stat().st_size
    flat = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
    return flat.view(-1, *work.pixels[1:])


@torch.no_grad()
def _reconstruct(model: TorchTokenizer, pictures: torch.Tensor, path: str) -> None:
    size = pictures.numel()
    written = torch.from_file(path, shared=True, size=size, dtype=torch.uint8).view(pictures.shape)
    for source, target in zip(pictures.split(_BATCH), written.split(_BATCH), strict=True):
        target.copy_(model.picture(model(source.to(DEVICE))[0]))
