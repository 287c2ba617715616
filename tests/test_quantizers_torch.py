"""LFQ and FSQ against the package vector-quantize-pytorch, which is the oracle here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
package = pytest.importorskip("vector_quantize_pytorch")

from bsq_jax.quantizers import FiniteScalarQuantizer, LookupFreeQuantizer  # noqa: E402
from bsq_jax.quantizers.bits import to_index  # noqa: E402

pytestmark = pytest.mark.torch


def latents(channels):
    return np.random.default_rng(0).normal(size=(3, 40, channels)).astype(np.float32)


def both_gradients(quantizer, theirs, z):
    """Ours and theirs of the codes' sum, weighted, and of the loss."""
    probe = latents(z.shape[-1])[::-1].copy()

    @jax.jit
    def ours(z):
        def loss(z):
            out = quantizer(z)
            return out.loss + jnp.sum(out.quantized * probe), out

        return jax.grad(loss, has_aux=True)(z)

    given = torch.tensor(z, requires_grad=True)
    out = theirs(given)
    (out[0] * torch.tensor(probe)).sum().add(out[2]).backward()
    gradient, found = ours(z)
    np.testing.assert_allclose(gradient, given.grad, atol=1e-5)
    return found, out


@pytest.mark.parametrize("inv_temperature", [0.3, 1.0])
def test_lfq(inv_temperature):
    length = 6
    module = package.LFQ(
        dim=length,
        codebook_size=2**length,
        entropy_loss_weight=1 / inv_temperature,
        commitment_loss_weight=0.25 * length,  # theirs is a mean over channels, ours a sum
        diversity_gamma=0.8,
    )

    def theirs(z):
        out, terms = module(z, inv_temperature=inv_temperature, return_loss_breakdown=True)
        return out.quantized, out.indices, out.entropy_aux_loss, terms

    quantizer = LookupFreeQuantizer(length, length, inv_temperature, 1.0, 0.8, 0.25)
    found, (quantized, indices, loss, terms) = both_gradients(quantizer, theirs, latents(length))
    np.testing.assert_array_equal(found.quantized, quantized.detach())
    np.testing.assert_array_equal(to_index(found.bits), indices)
    # Theirs takes the logarithm of at least 1e-5.
    wanted = [terms.per_sample_entropy, terms.batch_entropy, terms.commitment * length]
    names = ["token_entropy", "codebook_entropy", "commitment"]
    for name, term in zip(names, wanted, strict=True):
        np.testing.assert_allclose(found.losses[name], term.item(), rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(found.loss, loss.item(), rtol=1e-3)


@pytest.mark.parametrize("levels", [(8, 6, 5), (7, 5, 5, 5, 5), (4,) * 6])
def test_fsq(levels):
    module = package.FSQ(levels=list(levels))

    def theirs(z):
        return *module(z), torch.tensor(0.0)

    z = 2 * latents(len(levels))
    found, (quantized, indices, _) = both_gradients(FiniteScalarQuantizer(levels), theirs, z)
    np.testing.assert_allclose(found.quantized, quantized.detach(), atol=1e-6)
    # Their first channel is the least significant.
    backward = FiniteScalarQuantizer(levels[::-1]).nearest(found.quantized[..., ::-1])
    np.testing.assert_array_equal(to_index(backward), indices)
