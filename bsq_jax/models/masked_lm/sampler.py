"""Generation with a masked language model: parallel decoding by confidence, in one scan.

All words of a frame are masked at first. In each step the model proposes a word for every mask, and
the proposals that it is surest of are kept (MaskGIT, arXiv 2202.04200, section 3.2); how many is
fixed by a schedule. The words of a token are proposed in order, each out of those that make a code
with the others, so that what is kept can always be completed to a code. Words that are given are
never touched, which makes the same program one for inpainting. Frames of a clip are filled in one
after the other, each given those before it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bsq_jax.core.rng import stream_key
from bsq_jax.core.sharding import (
    BATCH_AXES,
    batch_sharding,
    batch_shards,
    jit_on,
    replicated,
    to_host,
)
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.masked_lm.mask_schedule import masked_after
from bsq_jax.models.masked_lm.model import MaskedLm, MaskedLmShape, positions_of

_TOKENS = 2048  # that a device works on at a time, counted without those of guidance
_MOST_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How words are chosen.

    Attributes:
      steps: of a frame; more than there are words to decide are no use.
      schedule: of what is still masked after a step, see `bsq_jax.models.masked_lm.mask_schedule`.
      order: what is decided first: ``confidence``, the words that the model is surest of, or
        ``random``. With a word in each step and in random order, samples have exactly the
        distribution that the model gives to that order.
      temperature: the logits are divided by it; 0 takes the likeliest words.
      noise: Gumbel noise times this is added to the confidence (the log-probability of what was
        drawn) in the first step, and less and less until the last, which has none.
      guidance: w of classifier-free guidance, which draws from
        ``logits + w (logits - logits without class)``; 0 for none.
      unit: what is decided as a whole: a ``token``, or each ``group`` of bits by itself.
    """

    steps: int
    schedule: str
    order: str
    temperature: float
    noise: float
    guidance: float
    unit: str


def fill_in(
    logits_of: Callable[[jax.Array], jax.Array],
    shape: MaskedLmShape,
    sampling: Sampling,
    words: jax.Array,
    masked: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Decides the masked words of a frame; to be called inside `jax.jit`.

    Args:
      logits_of: maps words int32 ``[batch, token, group]``, some of them masks, to logits
        ``[batch, token, sum of words]``.
      shape: of the model.
      sampling: how.
      words: int32 ``[batch, token, group]``; what is masked may hold anything.
      masked: booleans ``[batch, token]``, which tokens are to be decided.
      keys: a random key for each example; what it gets depends on no other example.

    Returns:
      The words ``[batch, token, group]``, and how many units were still masked after each step,
      int32 ``[step, batch]``.
    """
    by_token = sampling.unit == "token"
    batch, tokens, groups = words.shape
    units = tokens if by_token else tokens * groups
    masks = jnp.asarray(shape.masks).reshape(1, 1, groups)
    left = jnp.asarray(masked_after(sampling.schedule, sampling.steps, units))

    def units_of(values: jax.Array) -> jax.Array:
        """Words ``[batch, token, group]`` as units ``[batch, unit]``."""
        return values[..., 0] if by_token else values.reshape(batch, units)

    hidden = jnp.broadcast_to(masked[..., None], words.shape)
    total = jnp.sum(units_of(hidden), axis=1)

    def step(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> Any:
        words, hidden = carry
        logits = logits_of(jnp.where(hidden, masks, words))
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        known = jnp.where(hidden, 0, words)
        drawn, sure = _draw(shape, logits, known, hidden, now, sampling.temperature)
        sure = jnp.sum(sure, axis=-1) if by_token else sure.reshape(batch, units)
        gumbel = _gumbel(now, units)
        if sampling.order == "random":
            score = gumbel
        else:
            fading = 1 - (number + 1) / sampling.steps
            score = sure + sampling.noise * fading * gumbel
        unknown = units_of(hidden)
        rank = jnp.argsort(jnp.argsort(jnp.where(unknown, score, jnp.inf), axis=1), axis=1)
        stay = unknown & (rank < left[number, total][:, None])
        stay = stay[..., None] if by_token else stay.reshape(words.shape)
        words = jnp.where(hidden & ~stay, drawn, words)
        hidden = hidden & stay
        return (words, hidden), jnp.sum(units_of(hidden), axis=1)

    numbers = jnp.arange(sampling.steps, dtype=jnp.int32)
    (words, _), counts = jax.lax.scan(step, (words, hidden), numbers)
    return words, counts


def _draw(
    shape: MaskedLmShape,
    logits: jax.Array,
    words: jax.Array,
    hidden: jax.Array,
    keys: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """A word for each group, int32, and its log-probability, ``[batch, token, group]`` both.

    The groups of a token are drawn one after the other, each from the words with which the token
    can name a code, given the `words` that are not `hidden` and those drawn before.
    """
    sure = []
    for group, of_group in enumerate(shape.split(logits)):
        most = shape.vocabulary.most(words, group)
        if most is not None:
            values = jnp.arange(of_group.shape[-1], dtype=jnp.int32)[None, None]
            of_group = jnp.where(values <= most[..., None], of_group, -jnp.inf)
        if temperature:
            here = jax.vmap(jax.random.fold_in, (0, None))(keys, group)
            word = jax.vmap(jax.random.categorical)(here, of_group / temperature)
        else:
            word = jnp.argmax(of_group, axis=-1)
        logs = jax.nn.log_softmax(of_group)
        word = jnp.where(hidden[..., group], word.astype(jnp.int32), words[..., group])
        words = words.at[..., group].set(word)
        sure.append(jnp.take_along_axis(logs, word[..., None], axis=-1)[..., 0])
    return words, jnp.stack(sure, axis=-1)


def _gumbel(keys: jax.Array, count: int) -> jax.Array:
    """Gumbel noise ``[batch, count]``, from other numbers than those of `_draw`."""
    here = jax.vmap(jax.random.fold_in, (0, None))(keys, 2**16)
    return jax.vmap(lambda key: jax.random.gumbel(key, (count,)))(here)


class Sampler:
    """Generates with the parameters that it is called with, on a mesh.

    Every device fills in its own examples, always as many at a time, whatever is asked for. So an
    example depends on the seed, its number and its class, and not on how many others there are or
    on the number of devices.
    """

    def __init__(
        self, model: MaskedLm, tokenizer: FrozenTokenizer, sampling: Sampling, mesh: Mesh
    ) -> None:
        """Takes the network, the tokenizer of its tokens, how to sample, and where."""
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._mesh = mesh
        self._rows = min(max(_TOKENS // model.shape.tokens, 1), _MOST_ROWS)
        self._programs = functools.cache(self._compiled)

    @property
    def batch(self) -> int:
        """Examples that are computed together."""
        return self._rows * batch_shards(self._mesh)

    def __call__(
        self,
        params: Any,
        frozen: Mapping[str, Any],
        labels: np.ndarray,
        *,
        seed: int = 0,
        frames: int = 1,
        given: np.ndarray | None = None,
        keep: np.ndarray | None = None,
        pixels: bool = True,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Generates examples, a batch at a time; the same on all hosts.

        Args:
          params: of the network, on the mesh.
          frozen: of `FrozenTokenizer.load`.
          labels: int ``[example]``, classes; -1 for none.
          seed: another one gives other examples.
          frames: of a clip.
          given: tokens that are kept, uint8 bits ``[example, time, token, L]``; None for none.
          keep: booleans ``[example, time, token]``, which of them are.
          pixels: decode as well.
          first: the example to begin with; those before it are left out.

        Yields:
          Bits uint8 ``[batch, time, token, L]``, and pixels uint8 ``[batch, time, height, width,
          3]`` or None, without padding.
        """
        shape, count = self._model.shape, len(labels)
        params = self._programs("gather")(params)
        # A batch begins where it would without `first`, so that each example stays in its row.
        for begin in range(first - first % self.batch, count, self.batch):
            numbers = np.arange(begin, begin + self.batch)
            rows = np.minimum(numbers, count - 1)  # the last one again fills the batch
            label = self._place(labels[rows].astype(np.int32))
            number = self._place(numbers.astype(np.int32))
            done: list[jax.Array] = []
            for frame in range(frames):
                if given is None or keep is None:
                    bits = np.zeros((self.batch, shape.tokens, shape.bits), np.uint8)
                    fixed = np.zeros((self.batch, shape.tokens), bool)
                else:
                    bits, fixed = given[rows, frame], keep[rows, frame]
                past = tuple(done[max(0, frame + 1 - shape.frames) :])
                arguments = past, self._place(bits), self._place(fixed), label, number
                frame_numbers = np.uint32(seed), np.int32(frame)
                done.append(self._programs("frame")(params, *arguments, *frame_numbers))
            clip = self._programs("stack")(*done)
            shown = self._programs("decode")(frozen, clip) if pixels else None
            real = slice(max(first - begin, 0), min(self.batch, count - begin))
            yield to_host(clip)[real], None if shown is None else to_host(shown)[real]

    def programs(self, params: Any, frozen: Any) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """What `__call__` runs on the devices, and the shapes of the arguments; runs nothing.

        Args:
          params: shapes of the network's parameters, on every device.
          frozen: shapes of what `FrozenTokenizer.load` gives.

        Returns:
          By name ``(jitted function, arguments)``.
        """
        shape, rows = self._model.shape, self.batch
        split = batch_sharding(self._mesh)

        def batch_of(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows, *more), dtype, sharding=split)

        frame = batch_of(jnp.uint8, shape.tokens, shape.bits)
        fixed, number = batch_of(jnp.bool_, shape.tokens), batch_of(jnp.int32)
        numbers = np.uint32(0), np.int32(0)
        found: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        for before in sorted({0, shape.frames - 1}):
            name = "sampling a frame" + (f" after {before}" if before else "")
            arguments = (params, (frame,) * before, frame, fixed, number, number, *numbers)
            found[name] = self._programs("frame"), arguments
        clip = batch_of(jnp.uint8, shape.frames, shape.tokens, shape.bits)
        found["decoding samples"] = self._programs("decode"), (frozen, clip)
        return found

    def _place(self, array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            array.shape, batch_sharding(self._mesh), lambda index: array[index]
        )

    def _compiled(self, what: str) -> Callable[..., Any]:
        if what == "gather":
            return jit_on(self._mesh, lambda tree: tree, out_shardings=replicated(self._mesh))
        if what == "stack":
            return jit_on(self._mesh, lambda *frames: jnp.stack(frames, axis=1))
        split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        function: Callable[..., jax.Array] = self._frame
        specs: tuple[PartitionSpec, ...] = (whole, *(split,) * 5, whole, whole)
        if what == "decode":
            function, specs = self._pixels, (whole, split)
        # Each device runs the very program that a single one would.
        split_up = jax.shard_map(
            function, mesh=self._mesh, in_specs=specs, out_specs=split, check_vma=False
        )
        return jit_on(self._mesh, split_up)

    def _pixels(self, frozen: Mapping[str, Any], bits: jax.Array) -> jax.Array:
        return self._tokenizer.pixels(bits, frozen)

    def _frame(
        self,
        params: Any,
        past: tuple[jax.Array, ...],
        bits: jax.Array,
        keep: jax.Array,
        labels: jax.Array,
        numbers: jax.Array,
        seed: jax.Array,
        frame: jax.Array,
    ) -> jax.Array:
        """Bits of one frame, ``[row, token, L]``, given those before it."""
        shape, sampling = self._model.shape, self._sampling
        keys = jax.vmap(jax.random.fold_in, (None, 0))(stream_key(seed, "samples"), numbers)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, frame)
        guided = bool(sampling.guidance)
        classes = jnp.concatenate([labels, jnp.full_like(labels, -1)]) if guided else labels

        def both(words: jax.Array) -> jax.Array:
            return jnp.concatenate([words, words]) if guided else words

        seen = None
        if past:
            words = shape.vocabulary.read(jnp.stack(past, axis=1))
            seen = self._apply(params, both(words), classes, streaming=True)[1]
        positions = positions_of(shape, 1, len(past))

        def logits_of(words: jax.Array) -> jax.Array:
            words = both(words)[:, None]
            logits = self._apply(params, words, classes, positions=positions, past=seen)[0]
            if not guided:
                return logits
            told, untold = jnp.split(logits, 2)
            return told + sampling.guidance * (told - untold)

        words = shape.vocabulary.read(bits)
        words, _ = fill_in(logits_of, shape, sampling, words, ~keep, keys)
        return shape.vocabulary.write(words)

    def _apply(self, params: Any, *arguments: Any, **options: Any) -> Any:
        return self._model.apply({"params": params}, *arguments, **options)
