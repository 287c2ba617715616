"""The settings of `benchmarks.accelerator`, the network they describe, and what was measured."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peer import Peer
from benchmarks.work import Work
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.quantizers import BinarySphericalQuantizer
from bsq_jax.training import flops

_QUANTIZER = BinarySphericalQuantizer(36, 1, 1.0, 1.0, 1.0, 0.0)


@dataclasses.dataclass
class Bench:
    """The settings of a run, and what it has found.

    Attributes:
      args: the flags.
      shape: of the tokenizer.
      rows: what was measured.
      peer: PyTorch; None where there is none.
    """

    args: argparse.Namespace
    shape: TokenizerShape
    rows: list[dict[str, Any]]
    peer: Peer | None

    @property
    def dtype(self) -> jnp.dtype:
        """Of the computation."""
        return jnp.dtype(self.args.dtype)

    def model(self, attention: str = "auto") -> TokenizerModel:
        """The tokenizer."""
        return TokenizerModel(self.shape, _QUANTIZER, self.dtype, attention=attention)

    def work(self, batch: int, *, train: bool) -> Work:
        """What PyTorch computes: the same."""
        shape = self.shape
        return Work(
            *(batch, shape.image_height, shape.image_width),
            patch=shape.patch[0],
            channels=shape.width,
            layers=shape.layers,
            heads=shape.heads,
            mlp=int(shape.width * shape.mlp_ratio),
            bits=shape.bits,
            head=shape.head_hidden,
            dtype=self.args.dtype,
            train=train,
        )

    def pixels(self, batch: int) -> np.ndarray:
        """Noise, uint8 ``[batch, 1, size, size, 3]``."""
        shape = (batch, 1, self.args.size, self.args.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def add(self, part: str, what: str, images: float, work: float | None, **more: Any) -> None:
        """Notes and prints a measurement.

        Args:
          part: the part of the benchmark.
          what: was measured.
          images: a second.
          work: useful FLOPs of an image; None where nobody counted.
          **more: anything else.
        """
        row: dict[str, Any] = {"part": part, "what": what, "images_per_second": images, **more}
        text = f"{part:<14}{what:<52}{images:>10.4g} images/s"
        if work is not None:
            row |= {"flops_per_image": work, "tflops": images * work / 1e12}
            peak = flops.peak_flops(jax.devices()[0])
            row["mfu"] = None if peak is None else images * work / peak
            share = "n/a" if row["mfu"] is None else f"{row['mfu']:.1%}"
            text += f"{row['tflops']:>10.4g} TFLOP/s   MFU {share}"
        print(text + "".join(f"   {key} {value}" for key, value in more.items()), flush=True)
        self.rows.append(row)
