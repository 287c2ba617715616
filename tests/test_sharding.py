"""The mesh and what lies where on it. Oracle: shapes of the pieces, counted by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from shapes import bsq_quantizer, tokenizer_shape
from small_task import tokenizer_task

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.sharding import (
    HostShard,
    batch_sharding,
    batch_shards,
    host_shard,
    make_mesh,
    parameter_shardings,
    replicated,
    to_global,
    to_host,
)
from bsq_jax.core.trees import leaves
from bsq_jax.models.tokenizer import TokenizerModel

DEVICES = 8


def test_mesh_sizes():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(1, 1, 1, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert batch_shards(make_mesh(2, 2, 2)) == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "mesh 3x1x1 .* needs 3 devices, but there are 8"),
        ((-1, 3, 1), "mesh 2x3x1 .* needs 6 devices, but there are 8"),
        ((-1, 16, 1), "mesh 1x16x1 .* needs 16 devices, but there are 8"),
        ((0, 1, 1), "must be positive"),
        ((-2, 1, 1), "must be positive"),
        ((8, 0, 1), "must be positive"),
    ],
)
def test_wrong_mesh_sizes_are_one_line(sizes, message):
    with pytest.raises(UserError, match=message) as error:
        make_mesh(*sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_one_process_feeds_the_whole_batch(sizes):
    assert host_shard(make_mesh(*sizes), 16) == HostShard(index=0, count=1)


def test_a_batch_that_does_not_divide_is_one_line():
    with pytest.raises(UserError, match="global batch 12 does not divide over 8 devices"):
        host_shard(make_mesh(8, 1, 1), 12)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_a_global_batch_lies_in_pieces_and_comes_back_whole(sizes):
    mesh = make_mesh(*sizes)
    rows = np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)
    batch = to_global({"pixels": rows}, mesh)
    pieces = 16 // batch_shards(mesh)
    assert {shard.data.shape for shard in batch["pixels"].addressable_shards} == {(pieces, 3)}
    assert batch["pixels"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
    np.testing.assert_array_equal(to_host(batch)["pixels"], rows)


def boxed(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_axes_that_do_not_divide_stay_whole():
    mesh = make_mesh(2, 2, 2)
    shardings = parameter_shardings(
        {
            "both": boxed((4, 6), "embed", "mlp"),
            "odd": boxed((5, 6), "embed", "mlp"),
            "twice": boxed((4, 4), "embed", "embed"),
            "unnamed": boxed((4, 4), None, "layers"),
            "free": jax.ShapeDtypeStruct((4,), jnp.float32),
        },
        mesh,
    )
    assert {name: sharding.spec for name, sharding in shardings.items()} == {
        "both": PartitionSpec("fsdp", "tensor"),
        "odd": PartitionSpec(None, "tensor"),
        "twice": PartitionSpec("fsdp", None),
        "unnamed": PartitionSpec(None, None),
        "free": PartitionSpec(),
    }


def test_the_tokenizer_and_its_optimiser_are_really_split():
    mesh = make_mesh(2, 2, 2)
    shape = tokenizer_shape(16, 16, 2, 8, bits=6, width=16, layers=2, heads=2, head_hidden=32)
    model = TokenizerModel(shape, bsq_quantizer(length=shape.bits))
    task = tokenizer_task(model, optimizer=optax.adamw(1e-3), ema_decay=0.9)
    state = task.init_state(mesh)
    params = leaves(state.params)
    pieces = {name: leaf.addressable_shards[0].data.shape for name, leaf in params.items()}
    block = "encoder/trunk/transformer/blocks"
    # [layers, embed, 3, heads, channels] and so on: embed is halved by fsdp, heads and mlp by
    # tensor, the scanned layers by nothing.
    assert pieces[f"{block}/attention/qkv/kernel"] == (2, 8, 3, 1, 8)
    assert pieces[f"{block}/attention/out/kernel"] == (2, 1, 8, 8)
    assert pieces[f"{block}/mlp/up/kernel"] == (2, 8, 32)
    assert pieces[f"{block}/mlp/down/kernel"] == (2, 32, 8)
    assert pieces["encoder/patch_embed/kernel"] == (192, 8)
    assert pieces["decoder/head_hidden/kernel"] == (8, 16)
    assert pieces["to_latent/kernel"] == (8, 6)
    whole = [name for name, piece in pieces.items() if piece == params[name].shape]
    assert sorted(whole) == ["decoder/head_out/bias", "to_latent/bias"]

    adam = state.opt_state[0]
    for tree in (adam.mu, adam.nu, state.ema):
        same = jax.tree.map(lambda a, b: a.sharding == b.sharding, tree, state.params)
        assert all(jax.tree.leaves(same))
    assert adam.count.sharding.is_equivalent_to(replicated(mesh), 0)


def test_parameters_that_the_mesh_does_not_divide_are_told_once(caplog):
    say_once.cache_clear()
    shape = tokenizer_shape(16, 16, 1, 8, 6, 24, 1, 3, 2.0, 0)
    model = TokenizerModel(shape, bsq_quantizer(length=shape.bits))
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))["params"]
    with caplog.at_level("WARNING"):
        parameter_shardings(boxed, make_mesh(2, 2, 2))
        parameter_shardings(boxed, make_mesh(2, 2, 2))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "mesh.tensor=2 does not divide axes 'heads' of size 3: parameters are whole along them on "
        "every device"
    ]
    caplog.clear()
    with caplog.at_level("WARNING"):
        parameter_shardings(boxed, make_mesh(4, 2, 1))
    assert not caplog.records
