"""The notebooks run, and hold nothing of who ran them. Oracle: the files of their runs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import bsq_jax

ROOT = pathlib.Path(bsq_jax.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
TRAIN = ROOT / "docs" / "notebooks" / "train_in_a_notebook.ipynb"
# Runs the cells one after the other, each under a name of its own for tracebacks.
RUN = """
import json, sys
namespace = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
"""
CHECK = """
import jax, numpy as np
from bsq_jax import Tokenizer
found = Tokenizer.load("runs/notebook")
(pixels,) = namespace["batches"](1)
after = namespace["frozen"]
print(json.dumps({
    "step": namespace["run"].step,
    "history": namespace["run"].history,
    "frozen": all(map(np.array_equal, jax.tree.leaves(after), jax.tree.leaves(found.params))),
    "tokens": found.encode(namespace["picture"]).tolist() == namespace["bits"].tolist(),
    "same": float(namespace["same"]),
    "losses": namespace["losses"],
    "samples": [*namespace["samples"].shape, float(np.abs(namespace["samples"]).max())],
}))
"""


@pytest.mark.smoke
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    """By the fields of nbformat 4.5 that Jupyter needs."""
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert not any(place in path.read_text() for place in ("/home/", "/root/", "/tmp/", "C:\\"))


def test_train_in_a_notebook(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", RUN + CHECK, TRAIN],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    lines = (tmp_path / "runs/notebook/metrics.jsonl").read_text().splitlines()
    assert found["step"] == 30
    assert found["history"] == [json.loads(line) for line in lines]
    assert "step 30/30" in ran.stderr  # what a terminal shows, a notebook shows
    assert "PSNR (dB)" in ran.stdout
    assert found["frozen"]
    assert found["tokens"]
    assert found["same"] == 1
    assert found["losses"][0] > 0.95  # nothing known: a bit each
    assert sum(found["losses"][-5:]) / 5 < found["losses"][0] - 0.05
    assert found["samples"][:4] == [4, 64, 64, 3]
    assert 0 < found["samples"][4] <= 1
