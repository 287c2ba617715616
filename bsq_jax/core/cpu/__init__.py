"""Operations that XLA for CPUs needs written differently; on GPUs and TPUs they are the plain ones.

Models use these in place of ``lax.dot_general``, ``nn.LayerNorm``, a GELU, a convolution, a max
pool, a stack of layers and a map over attention heads. Each function asks
`bsq_jax.core.target.platform` while it is traced. Both ways of each compute the same numbers up to
the order of sums, gradients included (tests/test_cpu.py); why a CPU needs its own is said at each.
"""

from bsq_jax.core.cpu.convolution import convolve
from bsq_jax.core.cpu.gelu import gelu
from bsq_jax.core.cpu.heads import map_heads, scores_exceed_cache
from bsq_jax.core.cpu.layers import end_of_layer, layers_in_a_loop, unrolled_layers
from bsq_jax.core.cpu.norm import LayerNorm
from bsq_jax.core.cpu.pooling import max_pool_2x2
from bsq_jax.core.cpu.products import dot_general

__all__ = [
    "LayerNorm",
    "convolve",
    "dot_general",
    "end_of_layer",
    "gelu",
    "layers_in_a_loop",
    "map_heads",
    "max_pool_2x2",
    "scores_exceed_cache",
    "unrolled_layers",
]
