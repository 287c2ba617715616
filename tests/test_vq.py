"""Vector quantization.

Oracles: golden vectors of the published code, brute force in float64 numpy, closed forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.quantizers import VectorQuantizer
from bsq_jax.quantizers.bits import to_index

pytestmark = pytest.mark.smoke


def vq(size=64, width=8, cosine=False, averaged=False, commitment_weight=0.25):
    return VectorQuantizer(size, width, cosine, averaged, commitment_weight)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("case", ["vq_plain", "vq_l2"])
def test_golden_values_and_both_gradients(golden, case):
    arrays = {key.split("/")[1]: x for key, x in golden("vq").items() if key.startswith(case)}
    quantizer = vq(cosine=case == "vq_l2")

    @jax.jit
    def everything(codebook, z):
        def loss(codebook, z):
            out = quantizer.apply({"params": {"codebook": codebook}}, z)
            return out.loss + jnp.sum(out.quantized * arrays["w"]), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(codebook, z)

    (dcodebook, dz), out = everything(arrays["codebook"], arrays["z"])
    np.testing.assert_array_equal(to_index(out.bits), arrays["indices"])
    np.testing.assert_allclose(out.quantized, arrays["quant"], atol=1e-6)
    np.testing.assert_allclose(out.loss, arrays["loss"], rtol=1e-6)
    np.testing.assert_allclose(dz, arrays["dz"], atol=1e-5)
    np.testing.assert_allclose(dcodebook, arrays["dcodebook"], atol=1e-5)
