"""Files that PyTorch has written, in both formats. Oracle: PyTorch's own values."""

import argparse
import collections

import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.torch_import.plain_settings import plain
from bsq_jax.torch_import.safe_pickle import Inert
from bsq_jax.torch_import.torch_file import read_torch_file

torch = pytest.importorskip("torch")
omegaconf = pytest.importorskip("omegaconf")
pytestmark = pytest.mark.torch
FORMATS = pytest.mark.parametrize("zipped", [True, False])


def save(path, value, zipped):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)


@FORMATS
def test_tensors_of_every_type(tmp_path, zipped):
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
    types += [torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64]
    given = {str(t): (base * 9).abs().to(t) for t in types}
    given |= {
        "transposed": base.T,
        "strided": base[1:, ::2],
        "repeated": base[:1].expand(3, 6),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base),
        "uint16": torch.arange(5).to(torch.uint16) if zipped else base,
    }
    save(tmp_path / "a.pt", given, zipped)
    read = read_torch_file(tmp_path / "a.pt")
    assert list(read) == list(given)
    for key, tensor in given.items():
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        want = (tensor.float() if half else tensor).detach().numpy()
        assert (read[key].dtype, read[key].shape) == (want.dtype, want.shape), key
        np.testing.assert_array_equal(read[key], want)
    assert np.shares_memory(read["strided"], read["transposed"])


@FORMATS
def test_modules_optimisers_and_settings(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    module(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    settings = {"model": {"params": {"vitconfig": {"heads": 4, "size": [8, 16]}}, "x": None}}
    settings |= {"y": "${model.x}"}
    given = {
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": omegaconf.OmegaConf.create(settings),
        "args": argparse.Namespace(lr=0.1, name="a", nested=argparse.Namespace(b=[1])),
        "best": np.float64(0.5),
        "counts": collections.defaultdict(list),
        "array": np.arange(6.0).reshape(2, 3),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "module": module,
    }
    save(tmp_path / "a.pt", given, zipped)
    read = read_torch_file(tmp_path / "a.pt")
    assert list(read["state_dict"]) == list(given["state_dict"])
    for key, tensor in given["state_dict"].items():
        np.testing.assert_array_equal(read["state_dict"][key], tensor.numpy())
    moments = read["optimizer"]["state"][0]["exp_avg"]
    np.testing.assert_array_equal(moments, optimizer.state_dict()["state"][0]["exp_avg"].numpy())
    assert plain(read["config"]) == settings
    assert plain(read["args"]) == {"lr": 0.1, "name": "a", "nested": {"b": [1]}}
    assert (read["best"], read["size"]) == (0.5, (2, 3))
    np.testing.assert_array_equal(read["array"], given["array"])
    for key in ("device", "dtype", "module"):
        assert isinstance(read[key], Inert), key


@FORMATS
def test_damage(tmp_path, zipped):
    path = tmp_path / "a.pt"
    save(path, {"w": torch.ones(300)}, zipped)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(path)):
            read_torch_file(path)
