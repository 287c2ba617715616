"""Inception-v3 against the same architecture in PyTorch, through a file of its weights.

The network below is written from the paper's figures and the shapes in the published file, apart
from the tables that the package computes with.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks.inception import inception, load_inception

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.torch


class Unit(torch.nn.Module):
    def __init__(self, inputs, outputs, window, stride=1, padding=0):
        super().__init__()
        self.conv = torch.nn.Conv2d(inputs, outputs, window, stride, padding, bias=False)
        self.bn = torch.nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


def average(x):
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def triple(block, inputs, last):
    """The branch with two 3x3 convolutions that blocks A and B share."""
    block.branch3x3dbl_1 = Unit(inputs, 64, 1)
    block.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
    block.branch3x3dbl_3 = Unit(96, 96, 3, **last)


class A(torch.nn.Module):
    def __init__(self, inputs, pooled):
        super().__init__()
        self.branch1x1 = Unit(inputs, 64, 1)
        self.branch5x5_1 = Unit(inputs, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        triple(self, inputs, {"padding": 1})
        self.branch_pool = Unit(inputs, pooled, 1)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        wide = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(average(x))], 1)


class B(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3 = Unit(inputs, 384, 3, stride=2)
        triple(self, inputs, {"stride": 2})

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class C(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        flat, tall = {"padding": (0, 3)}, {"padding": (3, 0)}
        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1 = Unit(768, width, 1)
        self.branch7x7_2 = Unit(width, width, (1, 7), **flat)
        self.branch7x7_3 = Unit(width, 192, (7, 1), **tall)
        self.branch7x7dbl_1 = Unit(768, width, 1)
        self.branch7x7dbl_2 = Unit(width, width, (7, 1), **tall)
        self.branch7x7dbl_3 = Unit(width, width, (1, 7), **flat)
        self.branch7x7dbl_4 = Unit(width, width, (7, 1), **tall)
        self.branch7x7dbl_5 = Unit(width, 192, (1, 7), **flat)
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x):
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(average(x))], 1)


class D(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3_1 = Unit(768, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(768, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x):
        long = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        short = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([short, self.branch7x7x3_4(long), functional.max_pool2d(x, 3, 2)], 1)


class E(torch.nn.Module):
    def __init__(self, inputs, pool):
        super().__init__()
        self.pool = pool
        flat, tall = {"padding": (0, 1)}, {"padding": (1, 0)}
        self.branch1x1 = Unit(inputs, 320, 1)
        self.branch3x3_1 = Unit(inputs, 384, 1)
        self.branch3x3_2a = Unit(384, 384, (1, 3), **flat)
        self.branch3x3_2b = Unit(384, 384, (3, 1), **tall)
        self.branch3x3dbl_1 = Unit(inputs, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, (1, 3), **flat)
        self.branch3x3dbl_3b = Unit(384, 384, (3, 1), **tall)
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x):
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        ends = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        ends += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([*ends, self.branch_pool(self.pool(x))], 1)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a = B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = C(128), C(160), C(160), C(192)
        self.Mixed_7a = D()
        self.Mixed_7b = E(1280, average)
        self.Mixed_7c = E(2048, lambda x: functional.max_pool2d(x, 3, 1, 1))
        self.fc = torch.nn.Linear(2048, 1008)

    def forward(self, x):
        x = functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        pool = x.mean((2, 3))
        return pool, self.fc(pool)


@pytest.fixture(scope="module")
def network():
    """Random weights that keep the size of the signal, and statistics far from 0 and 1."""
    torch.manual_seed(0)
    network = Network().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            torch.nn.init.normal_(module.running_mean, 0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.3, 2)
    return network


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict() | {"AuxLogits.fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.mark.parametrize("shape", [(2, 1, 64, 64, 3), (1, 1, 299, 299, 3), (1, 2, 310, 200, 3)])
def test_same_as_pytorch(network, path, shape):
    params = load_inception(path)
    pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    frames = pixels.reshape(-1, *shape[2:]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        pool, logits = (value.numpy() for value in network(torch.from_numpy(frames.copy())))
    unbiased = logits - network.fc.bias.detach().numpy()
    found = jax.jit(inception)(params, jnp.asarray(pixels))
    biased = jax.jit(lambda *args: inception(*args, bias=True))(params, jnp.asarray(pixels))
    pairs = [(found.pool, pool), (found.logits, unbiased), (biased.logits, logits)]
    for ours, theirs in pairs:
        theirs = theirs.reshape(*shape[:2], -1)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).std()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.std())


def test_file_without_a_key(network, tmp_path):
    state = network.state_dict()
    del state["Mixed_7a.branch3x3_2.bn.bias"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(UserError, match=r"partial\.pth: key Mixed_7a.branch3x3_2.bn.bias .* miss"):
        load_inception(tmp_path / "partial.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        load_inception(tmp_path / "list.pth")
