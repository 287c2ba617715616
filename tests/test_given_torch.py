"""Tensors of PyTorch as inputs of the API. Oracle: the same numbers as numpy arrays."""

import numpy as np
import pytest
from test_given import equal, images, make, message_of

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_as_torchvision_makes_them(dtype):
    """``[batch, channel, height, width]`` in [0, 1], that need gradients."""
    tokenizer = make()
    tensor = torch.from_numpy(images(2)).movedim(-1, 1).to(getattr(torch, dtype)) / 255
    tensor.requires_grad_()
    array = tensor.detach().double().numpy()
    wanted = tokenizer.encode(array.transpose(0, 2, 3, 1), value_range=(0, 1))
    equal(tokenizer.encode(tensor, value_range=(0, 1), layout="NCHW"), wanted)
    equal(tokenizer.encode(tensor[0], value_range=(0, 1), layout="CHW"), wanted[0])
    listed = tokenizer.encode(list(tensor), value_range=(0, 1), layout="CHW")
    for one, other in zip(listed, wanted, strict=True):
        equal(one, other)
    assert "say layout='NCHW'" in message_of(tokenizer.encode, tensor)
    made = tokenizer.reconstruct(tensor, value_range=(0, 1), layout="NCHW")
    assert made.shape == tuple(tensor.shape)


def test_bytes_bits_and_ids():
    tokenizer = make()
    pixels = images(2)
    bits = tokenizer.encode(pixels)
    equal(tokenizer.encode(torch.from_numpy(pixels)), bits)
    equal(tokenizer.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2), layout="CHW"), bits)
    for dtype in (torch.uint8, torch.int64, torch.bool):
        equal(tokenizer.decode(torch.from_numpy(bits).to(dtype)), tokenizer.decode(bits))
    equal(tokenizer.ids(torch.from_numpy(bits)), tokenizer.ids(bits))
    equal(tokenizer.bits(torch.from_numpy(tokenizer.ids(bits))), bits)
    stream = tokenizer.stream()
    equal(stream.encode(torch.from_numpy(pixels[0])), bits[0])


def test_tensors_that_cannot_be_read():
    tokenizer = make()
    sparse = torch.zeros(16, 24, 3).to_sparse()
    meta = torch.zeros(16, 24, 3, device="meta")
    for tensor in (sparse, meta):
        message = message_of(tokenizer.encode, tensor)
        assert message.startswith("pixels of type torch.Tensor cannot be read as an array: ")
    equal(tokenizer.encode(np.asarray(images())), tokenizer.encode(torch.from_numpy(images())))
