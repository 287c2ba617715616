"""Exact sums over a whole split, on the host in float64: means of metrics, and codebook usage.

Every host adds the same values: evaluation replicates its small results first.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from bsq_jax.core.clips import real_frames
from bsq_jax.core.errors import UserError
from bsq_jax.quantizers.bits import group_sizes, pack_bytes
from bsq_jax.quantizers.layout import TokenLayout

_COUNTED_BITS = 20  # of tokens or stages whose codes are counted in an array of them all


class MeanAccumulator:
    """Exact streaming means of named per-example values, in float64 on the host.

    Feed it numpy arrays, or JAX arrays that this process holds whole.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def update(self, values: Mapping[str, npt.ArrayLike], mask: npt.ArrayLike) -> None:
        """Adds a batch.

        Args:
          values: name to ``[batch]`` values, one per example.
          mask: ``[batch]``: True or a positive weight for examples that count, False or 0 for
            padding. Whatever a padded row holds, NaN included, leaves no trace.

        Raises:
          UserError: if a shape is not that of the mask, or a weight is negative or not finite.
        """
        weights = np.asarray(mask, np.float64)
        if weights.ndim != 1 or not np.all(np.isfinite(weights) & (weights >= 0)):
            raise UserError("the mask must be [batch] of booleans or finite weights of at least 0")
        counted = weights > 0
        for name, value in values.items():
            array = np.asarray(value, np.float64)
            if array.shape != weights.shape:
                raise UserError(
                    f"values of {name!r} have shape {array.shape} but the mask {weights.shape}: "
                    "give one value per example"
                )
            total = float(np.sum(array[counted] * weights[counted]))
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._weights[name] = self._weights.get(name, 0.0) + float(np.sum(weights))

    def counted(self) -> bool:
        """Whether at least one example was counted."""
        return bool(self._sums) and min(self._weights.values()) > 0

    def result(self) -> dict[str, float]:
        """The weighted mean of each name.

        Raises:
          UserError: if no example was counted.
        """
        if not self.counted():
            raise UserError("no example was counted: check that the split is not empty")
        return {name: self._sums[name] / self._weights[name] for name in self._sums}


class ClipMeans:
    """Exact streaming means of named per-frame values of clips, in float64 on the host.

    A clip's value is the mean over its real frames, and each clip has the same weight, whatever its
    length. There is also the mean at each frame index over the clips that have that frame.
    """

    def __init__(self) -> None:
        self._of_clips = MeanAccumulator()
        self._of_frames: list[MeanAccumulator] = []

    def update(
        self, values: Mapping[str, npt.ArrayLike], mask: npt.ArrayLike, frames: npt.ArrayLike
    ) -> None:
        """Adds a batch.

        Args:
          values: name to ``[batch, time]`` values, one per frame.
          mask: ``[batch]`` as in `MeanAccumulator.update`.
          frames: ``[batch]``, real frames of each clip. Whatever padding holds leaves no trace.

        Raises:
          UserError: as `MeanAccumulator.update`, and if there are not values for each frame.
        """
        mask, frames = np.asarray(mask, np.float64), np.asarray(frames)
        arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
        time = max((array.shape[-1] for array in arrays.values()), default=0)
        for name, array in arrays.items():
            if array.shape != (*mask.shape, time):
                raise UserError(
                    f"values of {name!r} have shape {array.shape}, but the mask {mask.shape} and "
                    f"clips {time} frames: give one value per frame"
                )
        real = real_frames(frames, time)
        self._of_clips.update(
            {
                name: np.sum(np.where(real, array, 0.0), axis=1) / np.maximum(frames, 1)
                for name, array in arrays.items()
            },
            mask,
        )
        self._of_frames += [MeanAccumulator() for _ in range(time - len(self._of_frames))]
        for index in range(time):
            of_frame = {name: array[:, index] for name, array in arrays.items()}
            self._of_frames[index].update(of_frame, mask * real[:, index])

    def result(self) -> dict[str, float]:
        """The mean over clips of each name.

        Raises:
          UserError: if no clip was counted.
        """
        return self._of_clips.result()

    def per_frame(self) -> dict[str, list[float]]:
        """For each name the mean at frame index 0, 1, ..., up to the last that a clip has."""
        results = [frame.result() for frame in self._of_frames if frame.counted()]
        names = results[0] if results else {}
        return {name: [result[name] for result in results] for name in names}


class CodeUsageResult(TypedDict):
    """What ``CodeUsage`` reports. Entropies are those of the counted frequencies, in bits.

    Attributes:
      codes_used: number of distinct codes seen.
      tokens: number of tokens seen.
      usage: ``codes_used`` over the most that could be, ``min(codes, tokens)``, in [0, 1].
      perplexity: exp of the entropy of the codes, 1 to ``codes_used``: that of so many codes which
        are equally frequent.
      codes_dead: number of codes that no token has, in all stages together; not there if there are
        more codes in a stage than tokens, or more than 2^20 in each of several stages.
      bit_means: for each of the L bits the share of ones; 0.5 is ideal.
      bit_entropy: mean over the bits of the entropy of one bit, in [0, 1]; 1 is ideal.
      group_entropies: for each group of neighbouring bits the entropy of the group as a whole, at
        most its number of bits. Their sum bounds the entropy of the codes from above.
    """

    codes_used: int
    tokens: int
    usage: float
    perplexity: float
    codes_dead: NotRequired[int]
    bit_means: list[float]
    bit_entropy: float
    group_entropies: list[float]


class CodeUsage:
    """Exact streaming codebook usage, for tokens of any number of bits.

    Up to 20 bits all codes are counted; above that the distinct codes themselves are kept, packed
    into bytes, with their counts, which takes at most ``ceil(L / 8) + 8`` bytes per token.

    Args:
      layout: of a token's bits.
      group_size: neighbouring bits per group for the group entropies, 1 to 16; the last group may
        be smaller. By default 9, or L if that is less.

    Raises:
      UserError: if the group size is out of range.
    """

    def __init__(self, layout: TokenLayout, group_size: int | None = None) -> None:
        self.layout, bits = layout, layout.length
        self.group_size = min(9, bits) if group_size is None else group_size
        self._sizes = group_sizes(bits, self.group_size)
        self._tokens = 0
        self._ones = np.zeros(bits, np.int64)
        self._groups = np.zeros((len(self._sizes), 2**self.group_size), np.int64)
        self._counts = np.zeros(2**bits if bits <= _COUNTED_BITS else 0, np.int64)
        several = layout.stages > 1 and layout.bits <= _COUNTED_BITS
        stages = range(layout.stages if several else 0)
        self._stages = [np.zeros(2**layout.bits, np.int64) for _ in stages]
        self._codes = np.zeros((0, -(-bits // 8)), np.uint8)  # [distinct codes, bytes], sorted
        self._repeats = np.zeros(0, np.int64)  # how often each of them was seen
        self._fresh: list[np.ndarray] = []  # rows like those of _codes, repeats not yet removed

    def update(self, bits: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> None:
        """Adds tokens.

        Args:
          bits: zeros and ones ``[batch, ..., L]``.
          mask: True for tokens that count, its axes the first axes of `bits` before the last; all
            of them if None.

        Raises:
          UserError: if the shapes do not fit or a value is neither 0 nor 1.
        """
        tokens = np.asarray(bits)
        if tokens.ndim < 2 or tokens.shape[-1] != self.layout.length:
            raise UserError(
                f"expected bits [batch, ..., {self.layout.length}], got shape {tokens.shape}"
            )
        if mask is not None:
            keep = np.asarray(mask, bool)
            if keep.shape != tokens.shape[:-1][: keep.ndim]:
                raise UserError(f"mask has shape {keep.shape}, but the bits {tokens.shape}")
            tokens = tokens[keep]
        if not np.all((tokens == 0) | (tokens == 1)):
            raise UserError("bits must be zeros and ones")
        tokens = tokens.reshape(-1, self.layout.length).astype(np.uint8)
        self._tokens += len(tokens)
        self._ones += tokens.sum(axis=0, dtype=np.int64)
        start = 0
        for counts, size in zip(self._groups, self._sizes, strict=True):
            index = _as_integers(tokens[:, start : start + size])
            counts += np.bincount(index, minlength=len(counts))
            start += size
        for stage, counts in enumerate(self._stages):
            first = stage * self.layout.bits
            index = _as_integers(tokens[:, first : first + self.layout.bits])
            counts += np.bincount(index, minlength=len(counts))
        if self._counts.size:
            self._counts += np.bincount(_as_integers(tokens), minlength=len(self._counts))
        else:
            self._add_codes(pack_bytes(tokens))

    def result(self) -> CodeUsageResult:
        """The counts so far; see ``CodeUsageResult``.

        Raises:
          UserError: if no token was counted.
        """
        if not self._tokens:
            raise UserError("no token was counted: check that the split is not empty")
        counts = self._counts if self._counts.size else self._counted_codes()
        used = int(np.count_nonzero(counts))
        codes = self.layout.codes**self.layout.stages
        both = np.stack([self._ones, self._tokens - self._ones], axis=1)
        result: CodeUsageResult = {
            "codes_used": used,
            "tokens": self._tokens,
            "usage": used / min(codes, self._tokens),
            "perplexity": float(np.exp2(_entropy(counts))),
            "bit_means": (self._ones / self._tokens).tolist(),
            "bit_entropy": float(np.mean([_entropy(row) for row in both])),
            "group_entropies": [_entropy(counts) for counts in self._groups],
        }
        if self.layout.codes <= self._tokens:
            if self.layout.stages == 1:
                result["codes_dead"] = codes - used
            elif self._stages:
                seen = np.count_nonzero(np.stack(self._stages))
                result["codes_dead"] = self.layout.stages * self.layout.codes - int(seen)
        return result

    def _add_codes(self, rows: np.ndarray) -> None:
        self._fresh.append(rows)
        # Sorting only once the new rows outnumber the old keeps the whole at n log n.
        if sum(map(len, self._fresh)) > max(len(self._codes), 1 << 16):
            self._counted_codes()

    def _counted_codes(self) -> np.ndarray:
        """How often each distinct code was seen."""
        if self._fresh:
            rows = np.concatenate([self._codes, *self._fresh])
            once = np.ones(len(rows) - len(self._codes), np.int64)
            repeats = np.concatenate([self._repeats, once])
            self._codes, self._repeats = _distinct_rows(rows, repeats)
            self._fresh = []
        return self._repeats


def _as_integers(bits: np.ndarray) -> np.ndarray:
    """``[tokens, n]`` zeros and ones to int64 ``[tokens]``, the first bit the most significant."""
    return bits @ (1 << np.arange(bits.shape[1], dtype=np.int64)[::-1])


def _distinct_rows(rows: np.ndarray, repeats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of uint8 ``[n, bytes]``, sorted, and the sums of their repeats ``[n]``."""
    width = rows.shape[1]
    if width > 8:
        keys = np.ascontiguousarray(rows).view(f"V{width}")[:, 0]
    else:  # integers sort ten times as fast
        padded = np.zeros((len(rows), 8), np.uint8)
        padded[:, :width] = rows
        keys = padded.view(">u8")[:, 0].astype(np.uint64)
    order = np.argsort(keys)
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return rows[order[first]], np.add.reduceat(repeats[order], first)


def _entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the frequencies that these counts show."""
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log2(share))) + 0.0  # + 0.0 turns -0.0 into 0.0
