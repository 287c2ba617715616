"""What both sides of a comparison compute: the sizes of a tokenizer, a batch, and its products.

It needs neither JAX nor PyTorch, because the process of either side imports it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Work:
    """Reconstructing a batch, or a training step on it.

    A training step is the forward and backward pass of the pixel loss and the entropy terms, the
    clipping of the gradient, AdamW and the average of the parameters.

    Attributes:
      batch: examples.
      height: of a frame in pixels, a multiple of `patch`.
      width: of a frame in pixels, likewise.
      frames: of an example; attention is block-causal over them.
      patch: side of a patch in pixels.
      channels: of a token.
      layers: blocks of each half of the network.
      heads: of attention.
      mlp: hidden channels of a block's MLP.
      bits: of a token.
      head: hidden channels of the pixel head; 0: it is one linear layer.
      dtype: ``float32`` or ``bfloat16``, of the computation; parameters are float32.
      train: a training step.
      loss: ``l1`` or ``l2``.
      entropy: weight of the entropy terms.
      clip: ``parameter``, ``global`` or ``none``: whose norm is held below `clip_norm`.
      clip_norm: the largest norm of a gradient.
      weight_decay: of AdamW, for matrices.
      ema: decay of the averaged parameters.
    """

    batch: int
    height: int
    width: int
    frames: int = 1
    patch: int = 8
    channels: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    bits: int = 36
    head: int = 3072
    dtype: str = "float32"
    train: bool = False
    loss: str = "l1"
    entropy: float = 0.1
    clip: str = "parameter"
    clip_norm: float = 1.0
    weight_decay: float = 1e-4
    ema: float = 0.999

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def pixels(self) -> tuple[int, int, int, int, int]:
        """Shape of the uint8 pixels: (batch, time, height, width, 3)."""
        return self.batch, self.frames, self.height, self.width, 3


def not_in_peer(config: Any, *, train: bool) -> list[str]:
    """The settings of a finalised config that `Work` and the peer have no counterpart of."""
    model, quantizer, loss = config.model, config.quantizer, config.loss
    pixel_loss = loss.perceptual == loss.adversarial == 0 and 0 in (loss.l1, loss.l2)
    plain = {
        "quantizer.name": quantizer.name == "bsq",
        "quantizer.stages": quantizer.stages == 1,
        "quantizer.group_size": quantizer.group_size == 1,
        "model.head_channels": model.head_channels == 0,
        "model.positions": model.positions == "learned",
        "model.causality": model.causality == "block_causal",
        "model.patch_time": model.patch_time == 1,
        "model.window": model.window == model.spatial_window == 0,
        "optimizer.name": config.optimizer.name == "adamw" or not train,
        "loss": pixel_loss or not train,
    }
    return [name for name, fits in plain.items() if not fits]


def work_of(config: Any, batch: int, *, train: bool) -> Work:
    """The work that a finalised config describes, but for what `not_in_peer` names.

    Args:
      config: of a tokenizer.
      batch: examples.
      train: a training step.
    """
    model, loss, optimizer = config.model, config.loss, config.optimizer
    height, width = model.image_size
    return Work(
        batch,
        height,
        width,
        frames=model.frames,
        patch=model.patch_size,
        channels=model.width,
        layers=model.layers,
        heads=model.heads,
        mlp=int(model.width * model.mlp_ratio),
        bits=model.bits,
        head=model.head_hidden,
        dtype=model.dtype,
        train=train,
        loss="l1" if loss.l1 else "l2",
        entropy=loss.entropy,
        clip=optimizer.clip,
        clip_norm=optimizer.clip_norm,
        weight_decay=optimizer.weight_decay,
        ema=optimizer.ema,
    )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of a training, as `bsq_jax.training.optimizer.make_schedule` has it.

    Attributes:
      steps: of the training.
      peak: the largest rate.
      warmup_steps: in which it rises linearly.
      warmup_start: times the peak at step 0.
      final: times the peak at the last step, at the end of a cosine.
    """

    steps: int
    peak: float
    warmup_steps: int
    warmup_start: float
    final: float

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup_steps:
            start = self.warmup_start
            return self.peak * (start + (1 - start) * step / self.warmup_steps)
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return self.peak * (self.final + (1 - self.final) * cosine)


def schedule_of(config: Any) -> Schedule:
    """The schedule that a finalised config describes."""
    optimizer = config.optimizer
    return Schedule(
        steps=config.train.steps,
        peak=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        warmup_start=optimizer.warmup_start,
        final=optimizer.final,
    )


MODES = ("eager", "compiled", "by frame")
"""How the peer computes: ``compiled`` by ``torch.compile``.

The first two mask attention over a clip; the last is eager and leaves out what would be masked.
"""


def modes(work: Work) -> tuple[str, ...]:
    """The `MODES` that differ for this work."""
    return MODES if work.frames > 1 else MODES[:2]


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product of a network, or several alike at once.

    Attributes:
      form: ``ab`` for ``[many, m, k] x [many, k, n]``, ``abt`` where the second matrix is
        transposed, ``[many, n, k]``, ``atb`` where the first is, ``[many, k, m]``.
      many: products at once: 1, or batch times heads.
      m: rows of the result.
      k: terms of each sum.
      n: columns of the result.
    """

    form: str
    many: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> float:
        """A multiplication and an addition are two."""
        return 2.0 * self.many * self.m * self.k * self.n

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the two matrices."""
        many = () if self.many == 1 else (self.many,)
        left = (self.k, self.m) if self.form == "atb" else (self.m, self.k)
        right = (self.n, self.k) if self.form == "abt" else (self.k, self.n)
        return (*many, *left), (*many, *right)


def products(work: Work) -> dict[Product, float]:
    """All matrix products of the work, and how often each is computed.

    Those of a training step are the forward pass's and both gradients', but for the gradient of the
    pixels. Attention within a clip counts what is visible: frame t sees t + 1 of all frames, so
    these are (frames + 1) / 2 products with the keys of all.

    Args:
      work: what is computed.
    """
    found: dict[Product, float] = {}

    def add(form: str, m: int, k: int, n: int, times: float, many: int = 1) -> None:
        product = Product(form, many, m, k, n)
        found[product] = found.get(product, 0.0) + times

    def linear(inputs: int, outputs: int, times: float = 1.0, first: bool = False) -> None:
        add("ab", rows, inputs, outputs, times)
        if work.train:
            add("atb", inputs, rows, outputs, times)
            if not first:
                add("abt", rows, outputs, inputs, times)

    rows, blocks = work.batch * work.frames * work.frame_tokens, 2.0 * work.layers
    pixels, channels = 3 * work.patch**2, work.channels
    linear(pixels, channels, first=True)
    linear(channels, work.bits)
    linear(work.bits, channels)
    if work.head:
        linear(channels, work.head)
    linear(work.head or channels, pixels)
    linear(channels, 3 * channels, blocks)
    linear(channels, channels, blocks)
    linear(channels, work.mlp, blocks)
    linear(work.mlp, channels, blocks)

    many, channel = work.batch * work.heads, channels // work.heads
    query, key = work.frame_tokens, work.frames * work.frame_tokens
    times = blocks * (work.frames + 1) / 2
    add("abt", query, channel, key, times, many)  # scores
    add("ab", query, key, channel, times, many)  # sums of values
    if work.train:
        add("abt", query, channel, key, times, many)  # gradient of the weights of the sums
        add("atb", key, query, channel, 2 * times, many)  # of values, and of keys
        add("ab", query, key, channel, times, many)  # of queries
    return found


def flops(work: Work) -> float:
    """Of all products of the work."""
    return sum(product.flops * times for product, times in products(work).items())
