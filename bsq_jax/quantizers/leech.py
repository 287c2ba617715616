"""Spherical Leech quantization (arXiv 2512.14697): the shortest vectors of the Leech lattice.

The codes are the 196,560 shortest vectors of the lattice in 24 dimensions, scaled to length 1.
Times sqrt(32) they have three shapes (Conway and Sloane, Sphere Packings, Lattices and Groups,
chapter 4), and in the order of their numbers they are:

- 1,104 of shape ``(+-4^2, 0^22)``: number ``4 pair + 2 first + second``, pairs of places
  ``i < j`` in lexicographic order, `first` and `second` 1 where the entry is negative.
- 759 x 128 of shape ``(+-2^8, 0^16)``, entries at the places of an octad of the Golay code, with an
  even number of minus signs: ``128 octad + signs``, the octads as in `golay.octads`, `signs` seven
  bits, the first place's highest, 1 where the entry is negative; the eighth follows.
- 4,096 x 24 of shape ``(-+3, +-1^23)``: ``24 word + place``, ones that are negative where a code
  word has a one, and at the place minus three times that. The words are those that begin with 0,
  in the order of `golay.words`, each followed by its complement.

Each shape's numbers follow those of the one before.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core import target
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import each_on_its_own
from bsq_jax.quantizers import golay
from bsq_jax.quantizers.base import Quantizer
from bsq_jax.quantizers.bits import from_index, to_index
from bsq_jax.quantizers.bsq import to_sphere

CHANNELS = golay.LENGTH
CODES = 196_560
NORM = float(np.sqrt(32))  # of the vectors with integer entries
BLOCK = 8192  # tokens compared with all codes at a time: 64 MiB for each array
CPU_BLOCK = 256  # the same where arrays should fit the cache: half the time of 1,024

_TOLERANCE = 0.02  # of entries times sqrt(32), which are whole; codes in bfloat16 are within it
_PAIRS = np.stack(np.triu_indices(CHANNELS, 1), axis=1).astype(np.int32)
_OCTADS = 4 * len(_PAIRS)  # the first number of the second shape
_WORDS = _OCTADS + 759 * 128  # and of the third


class LeechQuantizer(Quantizer):
    """Quantizes directions to the code with the highest inner product; has no parameters, no loss.

    Of equal inner products, as computed, the first shape wins, in it the first pair, octad or word,
    and of a word the first place. The sign of a zero is plus. Where the signs of the points on an
    octad are odd, the first of the smallest entries gets the other sign.
    """

    @property
    def bits(self) -> int:
        """ceil(log2(196560))."""
        return (CODES - 1).bit_length()

    @property
    def channels(self) -> int:
        """24."""
        return CHANNELS

    @property
    def codes(self) -> int:
        """196,560."""
        return CODES

    @property
    def step(self) -> float:
        """0.5192: the mean inner product of what a stage leaves with the code nearest to that.

        So two stages leave the least squared error of points uniform on the sphere, 0.175, after
        0.445 of one stage. Measured with 2^20 of them, key 0; the standard error is 4e-5.
        """
        return 0.5192

    def project(self, latents: jax.Array) -> jax.Array:
        """See `to_sphere`."""
        return to_sphere(latents)

    def nearest(self, points: jax.Array) -> jax.Array:
        """The bits of the number of the code; points of any length, see `nearest_vector`."""
        return from_index(nearest_vector(points), self.bits)

    def decode(self, bits: jax.Array) -> jax.Array:
        """The codes of the numbers; those that name none give the last."""
        return vectors(to_index(bits)).astype(jnp.float32) / NORM


@jax.jit
def vectors(numbers: jax.Array) -> jax.Array:
    """The lattice vectors of numbers, made from their shapes.

    Tables of a pair, an octad and a word each are 70 KB, one of all vectors would be 4.7 MB in
    every program that decodes.

    Args:
      numbers: integers ``[...]``; those outside of 0 to 196,559 give the first or last vector.

    Returns:
      int8 ``[..., 24]``, of squared length 32.
    """
    numbers = jnp.clip(numbers.astype(jnp.int32), 0, CODES - 1)[..., None]
    places = _like(np.arange(CHANNELS), numbers)

    def row(table: np.ndarray, index: jax.Array) -> jax.Array:
        return jnp.take(jnp.asarray(table), index[..., 0], axis=0, mode="clip")

    pair = row(_PAIRS, numbers // 4)
    first = jnp.where(places == pair[..., :1], 4 - 8 * (numbers >> 1 & 1), 0)
    second = jnp.where(places == pair[..., 1:], 4 - 8 * (numbers & 1), 0)

    octad, signs = (numbers - _OCTADS) // 128, (numbers - _OCTADS) % 128
    eighth = jax.lax.population_count(signs) & 1
    rank = row(_ranks(), octad).astype(jnp.int32)  # 0 to 7, of the bits from the last to the first
    on_octad = jnp.where(rank < 8, 2 - 4 * ((2 * signs + eighth) >> rank & 1), 0)

    word, place = (numbers - _WORDS) // CHANNELS, (numbers - _WORDS) % CHANNELS
    ones = row(_signs(), word // 2).astype(jnp.int32) * (1 - 2 * (word % 2))
    on_word = jnp.where(places == place, -3 * ones, ones)

    made = jnp.where(numbers < _WORDS, on_octad, on_word)
    return jnp.where(numbers < _OCTADS, first + second, made).astype(jnp.int8)


def nearest_vector(points: jax.Array) -> jax.Array:
    """Numbers of the vectors with the highest inner product, among all of them.

    A point is compared with code words and octads in place of vectors, see `_search`, a block of
    points at a time, so that memory does not grow with their number. Each device goes through the
    blocks of its own examples, see `each_on_its_own`.

    Args:
      points: float32 ``[..., 24]``, of any length. Entries that are not finite count as 0.

    Returns:
      int32 ``[...]``; has no gradient.
    """
    leading = points.shape[:-1]
    points = jax.lax.stop_gradient(points)
    points = jnp.where(jnp.isfinite(points), points, 0.0)
    batch = leading[0] if leading else 1
    points = points.reshape(batch, 1, math.prod(leading[1:]), CHANNELS)
    size = CPU_BLOCK if target.platform() == "cpu" else BLOCK
    found = each_on_its_own(functools.partial(_in_blocks, size=size))(points)
    return found.reshape(leading)


@functools.partial(jax.jit, static_argnames="size")
def _in_blocks(points: jax.Array, *, size: int) -> jax.Array:
    """As `nearest_vector`, of one device's points ``[batch, 1, tokens, 24]``."""
    flat = points.reshape(math.prod(points.shape[:-1]), CHANNELS)
    count = flat.shape[0]  # symbolic in programs of `jax.export`, which then are of blocks
    if isinstance(count, int) and count <= size:
        return _search(flat).reshape(points.shape[:-1])
    whole = -(-count // size)
    blocks = jnp.pad(flat, ((0, whole * size - count), (0, 0))).reshape(whole, size, CHANNELS)
    return jax.lax.map(_search, blocks).reshape(-1)[:count].reshape(points.shape[:-1])


class _Best(NamedTuple):
    """The vector of one shape with the highest inner product, for each token."""

    score: jax.Array
    number: jax.Array


def _search(points: jax.Array) -> jax.Array:
    """As `nearest_vector`, of points ``[tokens, 24]``, all at once."""
    columns = points.T  # tokens last: reductions over codes are then sums of whole rows
    best = _best_pair(points)
    for found in (_best_octad(points, columns), _best_word(points, columns)):
        better = found.score > best.score
        best = jax.tree.map(lambda new, old, to=better: jnp.where(to, new, old), found, best)
    return best.number


def _best_pair(points: jax.Array) -> _Best:
    """Of the first shape: at the two largest entries, with their signs."""
    sizes, places = jax.lax.top_k(jnp.abs(points), 2)
    low, high = jnp.min(places, axis=1), jnp.max(places, axis=1)
    pair = low * (2 * CHANNELS - 1 - low) // 2 + high - low - 1
    first, second = (_at(points, place) < 0 for place in (low, high))
    return _Best(4 * jnp.sum(sizes, axis=1), 4 * pair + 2 * first + second)


def _best_octad(points: jax.Array, columns: jax.Array) -> _Best:
    """Of the second shape: with the points' signs, but for the smallest entry if they are odd."""
    member = _members()
    sizes = jnp.abs(columns)
    total = _product(member, sizes)
    odd = _product(member, (columns < 0).astype(jnp.float32)) % 2
    # The least of the entries on each octad: a matrix product with + for x and the minimum for +.
    outside = np.where(member > 0, 0, np.inf).astype(np.float32)
    on_octads = [sizes[None, i] + outside[:, i, None] for i in range(CHANNELS)]
    least = functools.reduce(jnp.minimum, on_octads)
    score, octad = _highest(2 * total - 4 * odd * least)

    places = jnp.take(jnp.asarray(golay.octads()), octad, axis=0)
    entries = jnp.take_along_axis(points, places, axis=1)
    minus = (entries < 0).astype(jnp.int32)
    smallest = jnp.argmin(jnp.abs(entries), axis=1)
    other = jax.nn.one_hot(smallest, 8, dtype=jnp.int32)
    minus = minus ^ (other * (jnp.sum(minus, axis=1) % 2)[:, None])
    return _Best(score, _OCTADS + 128 * octad + to_index(minus[:, :7]))


def _best_word(points: jax.Array, columns: jax.Array) -> _Best:
    """Of the third shape: minus three at the place whose sign the word has wrong the most.

    With the signs s of a word the inner product is ``sum(s u) + 4 max(-s u)``. The maximum over 24
    places is that of four tables, which have it for all signs of six places each.
    """
    agree = _product(_signs(), columns)
    runs = [_worst(run) for run in jnp.split(columns, 4)]
    rows = np.packbits(golay.words()[: len(_signs())].reshape(-1, 4, 6), axis=-1)[..., 0] >> 2
    own = functools.reduce(jnp.maximum, [run[rows[:, k]] for k, run in enumerate(runs)])
    other = functools.reduce(jnp.maximum, [run[63 - rows[:, k]] for k, run in enumerate(runs)])
    # The sum of the complement is minus the word's, and which of both it is, is computed again.
    score, half = _highest(jnp.maximum(4 * own + agree, 4 * other - agree))

    fits = jnp.take(jnp.asarray(_signs()), half, axis=0) * points
    both = jnp.stack([fits, -fits])
    scores = jnp.sum(both, axis=-1) - 4 * jnp.min(both, axis=-1)
    complement = scores[1] > scores[0]
    place = jnp.argmin(jnp.where(complement[:, None], -fits, fits), axis=1).astype(jnp.int32)
    return _Best(score, _WORDS + CHANNELS * (2 * half + complement) + place)


def _worst(columns: jax.Array) -> jax.Array:
    """How far the worst sign is off, for all signs: ``[n, tokens]`` to ``[2^n, tokens]``.

    The row of signs is the number whose bits, the first column's highest, are 1 for a minus.
    """
    worst = jnp.full((1, columns.shape[1]), -np.inf, jnp.float32)
    for column in columns:
        off = jnp.stack([-column, column])
        both = jnp.maximum(worst[:, None], off[None])
        worst = both.reshape(2 * len(worst), columns.shape[1])
    return worst


def _highest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The highest of each column of ``[codes, tokens]``, and the row of the first that is."""
    highest = jnp.max(scores, axis=0)
    rows = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    # Faster than `argmax`, which reduces pairs.
    return highest, jnp.min(jnp.where(scores == highest[None], rows, len(scores) - 1), axis=0)


def _product(rows: np.ndarray, columns: jax.Array) -> jax.Array:
    """``[codes, 24] @ [24, tokens]``, in full float32."""
    return jnp.matmul(rows.astype(np.float32), columns, precision=jax.lax.Precision.HIGHEST)


def _at(points: jax.Array, place: jax.Array) -> jax.Array:
    """The entries of ``[tokens, 24]`` at one place each, ``[tokens]``."""
    return jnp.take_along_axis(points, place[:, None], axis=1)[:, 0]


def _like(values: np.ndarray, array: jax.Array) -> jax.Array:
    """int32 values along the last axis, with as many axes as an array."""
    return jnp.asarray(values, jnp.int32).reshape((1,) * (array.ndim - 1) + (-1,))


@functools.cache
def _members() -> np.ndarray:
    """Whether places are on octads, float32 0/1 ``[759, 24]``."""
    member = np.zeros((len(golay.octads()), CHANNELS), np.float32)
    np.put_along_axis(member, golay.octads(), 1.0, axis=1)
    return member


@functools.cache
def _ranks() -> np.ndarray:
    """How many places of an octad come after a place on it, int8 ``[759, 24]``; elsewhere 8."""
    ranks = np.full(_members().shape, 8, np.int8)
    np.put_along_axis(ranks, golay.octads(), np.arange(8)[None, ::-1], axis=1)
    return ranks


@functools.cache
def _signs() -> np.ndarray:
    """The signs of the words that begin with 0, int8 ``[2048, 24]``; -1 where a word has a one."""
    return (1 - 2 * golay.words()[: 2 ** (golay.DIMENSION - 1)].astype(np.int8)).astype(np.int8)


def numbers_of(codebook: np.ndarray) -> np.ndarray:
    """The numbers of the rows of a codebook that has all codes, in any order.

    Args:
      codebook: floats ``[196560, 24]``, rows of length 1.

    Returns:
      int32 ``[196560]``: row k is the code of number ``result[k]``.

    Raises:
      UserError: another shape, a row that is no code, or one that is there twice.
    """
    if codebook.shape != (CODES, CHANNELS):
        raise UserError(
            f"the codebook has shape {codebook.shape}: that of the Leech quantizer has "
            f"{CODES} codes of {CHANNELS} channels"
        )
    scaled = np.asarray(codebook, np.float64) * NORM
    whole = np.clip(np.nan_to_num(np.rint(scaled)), -9, 9).astype(np.int8)
    ours = np.asarray(vectors(jnp.arange(CODES)))
    order = _keys(ours).argsort()
    found = order[np.searchsorted(_keys(ours)[order], _keys(whole)).clip(max=CODES - 1)]
    near = np.abs(scaled - ours[found]).max(axis=1) < _TOLERANCE  # false of what is not a number
    if not near.all():
        raise UserError(
            f"row {np.argmin(near)} of the codebook is no shortest vector of the Leech lattice, "
            f"scaled to length 1, in the coordinates of the published code"
        )
    uses = np.bincount(found, minlength=CODES)
    if uses.max() > 1:
        twice = np.flatnonzero(found == np.argmax(uses))
        raise UserError(f"rows {twice[0]} and {twice[1]} of the codebook are the same code")
    return found.astype(np.int32)


def _keys(rows: np.ndarray) -> np.ndarray:
    """The bytes of rows of int8, as numpy sorts and compares them."""
    return np.ascontiguousarray(rows + np.int8(64)).view(f"S{CHANNELS}")[:, 0]
