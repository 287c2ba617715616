"""Comparing speed: the products of a network in closed form, and the protocol of the peer.

Oracles: products counted by hand and in the traced programs, and a stand-in for PyTorch's process.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import limit
from benchmarks.compare import Comparison, compare
from benchmarks.peer import Peer, PeerError, add_flags, start
from benchmarks.timing import Seconds, in_turn, repeated, sustained
from benchmarks.work import Product, Work, flops, modes, not_in_peer, products, work_of
from bsq_jax.config import default_config, finalize, load_config_file
from bsq_jax.core.sharding import make_mesh
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.training.flops import count
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.useful_flops import step_flops

TINY = Work(2, 16, 24, channels=8, layers=1, heads=2, mlp=16, bits=5, head=12)

# Answers as PyTorch's process does: every call takes as many seconds as its mode has letters.
STAND_IN = """
import json, sys
made = set()
for line in sys.stdin:
    command = json.loads(line)
    match command["do"]:
        case "describe":
            answer = {"text": "stand-in", "device": "cpu"}
        case "work" | "product":
            made.add(command["number"])
            answer = {"parameters": 7}
        case "run" if command["mode"] == "compiled":
            answer = {"error": "RuntimeError: no compiler"}
        case "run":
            assert command["number"] in made
            answer = {"seconds": float(len(command["mode"]))}
        case "drop":
            made.remove(command["number"])
            answer = {"left": len(made)}
        case "die":
            sys.exit(3)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def peer():
    made = Peer([sys.executable, "-c", STAND_IN])
    yield made
    made.close()


def small_config(**model):
    config = default_config()
    config.model.update(width=32, layers=2, heads=2, head_hidden=48, image_size=(32, 32), bits=9)
    config.model.update(dtype="float32", **model)
    config.loss.update(perceptual=0.0, adversarial=0.0)
    return finalize(config)


@pytest.mark.smoke
def test_products_counted_by_hand():
    """Two pictures of 2x3 tokens: 12 rows, 192 values a patch, 8 channels, two heads of 4."""
    weights = 192 * 8 + 8 * 5 + 5 * 8 + 8 * 12 + 12 * 192 + 2 * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    attention = 2 * 2 * (2 * 2 * 6 * 4 * 6)  # halves, products, then pictures and heads
    assert flops(TINY) == 2 * (12 * weights + attention)
    step = Work(**{**vars(TINY), "train": True})
    assert flops(step) == 3 * flops(TINY) - 2 * 12 * 192 * 8  # no gradient of pixels
    assert products(step)[Product("atb", 1, 8, 12, 16)] == 2  # of the weights `up`, in both halves
    assert products(step)[Product("abt", 4, 6, 4, 6)] == 4  # scores, and their gradient


@pytest.mark.parametrize(("frames", "head"), [(1, 48), (1, 0), (3, 48)])
def test_products_are_those_of_the_traced_programs(frames, head):
    config = small_config(frames=frames, head_hidden=head)
    work = work_of(config, 2, train=True)
    task, mesh = make_tokenizer_task(config), make_mesh(devices=jax.devices()[:1])
    batch = {"pixels": jax.ShapeDtypeStruct(work.pixels, jnp.uint8)}
    counted = step_flops(task, task.abstract_state(mesh), batch, task.abstract_frozen(mesh))
    # Sums of layer norms and the metrics' counts of codes are products in our programs, of 1%.
    assert flops(work) == pytest.approx(counted, rel=0.02)
    if frames == 1:
        model, pixels = make_tokenizer(config), jnp.zeros(work.pixels)
        params = jax.eval_shape(model.init, jax.random.key(0), pixels)
        forward = work_of(config, 2, train=False)
        counted = count(lambda p, x: model.apply(p, x).pixels, params, pixels)
        assert flops(forward) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("form", ["ab", "abt", "atb"])
@pytest.mark.parametrize("many", [1, 3])
def test_products_have_the_shapes_that_they_say(form, many):
    product = Product(form, many, m=2, k=4, n=5)
    result = limit.make_product(product, "float32")()
    assert result.shape == ((2, 5) if many == 1 else (many, 2, 5))
    assert product.flops == 2 * many * 2 * 4 * 5
    left, right = (np.prod(shape) for shape in product.shapes)
    assert (left, right) == (many * 8, many * 20)


def test_published_configs_have_a_peer():
    """All but the quickstart and its variant `whole`, of which the peer lacks what is named."""
    for name in ("quickstart:adamw", "quickstart:l1"):
        assert not_in_peer(finalize(load_config_file(name)), train=False) == []
    assert not_in_peer(finalize(load_config_file("quickstart:l1")), train=True) == []
    lacking = not_in_peer(finalize(load_config_file("quickstart:whole")), train=True)
    assert lacking == ["quantizer.stages", "model.head_channels", "optimizer.name"]
    within_windows = not_in_peer(finalize(load_config_file("quickstart")), train=True)
    assert within_windows == [*lacking[:2], "model.positions", "model.window", lacking[2], "loss"]
    published = finalize(load_config_file("tokenizer"))
    assert not_in_peer(published, train=True) == ["loss"]  # the perceptual and adversarial ones


def test_the_faster_side_of_each_product_counts():
    one, other = Product("ab", 1, 2, 2, 2), Product("ab", 1, 4, 4, 4)
    took = {("jax", one): 1.0, ("torch", one): 2.0, ("jax", other): 8.0, ("torch", other): 5.0}
    found = limit.Limit({one: 10.0, other: 2.0}, took)
    assert found.seconds() == 10 * 1 + 2 * 5
    assert found.seconds("torch") == 10 * 2 + 2 * 5
    assert found.gflops("jax") == pytest.approx((10 * 16 + 2 * 128) / 26 / 1e9)
    cells = Comparison(TINY, {"step": 40.0}, {"eager": 30.0, "compiled": 25.0}, found).columns(
        "step", 2, "images"
    )
    assert cells["images/s"] == 2 / 40
    assert cells["PyTorch eager"] == 2 / 30
    assert cells["times PyTorch's fastest"] == 25 / 40
    assert cells["limit"] == 2 / 20
    assert cells["share of limit"] == 20 / 40
    assert cells["PyTorch's share"] == 20 / 25


def test_the_peer_answers_and_forgets(peer):
    assert (peer.text, peer.device) == ("stand-in", "cpu")
    with peer.work(TINY) as calls, peer.product(Product("ab", 1, 2, 2, 2), "float32") as product:
        assert tuple(calls) == modes(TINY) == ("eager", "compiled")
        assert calls["eager"]() == calls["eager"](calls=3) == 5.0
        assert isinstance(product(), Seconds)
        with pytest.raises(PeerError, match="no compiler"):
            calls["compiled"]()
    with peer.work(TINY):
        pass
    with pytest.raises(PeerError, match=r"process ended \(3\)"):
        peer.ask(do="die")


def test_a_mode_that_fails_is_left_out(peer, monkeypatch, capsys):
    monkeypatch.setattr(limit, "measure", lambda *_: None)
    clip = Work(**{**vars(TINY), "frames": 2})
    found = compare({"ours": lambda: Seconds(0.5)}, clip, peer, runs=1)
    assert found.ours == {"ours": 0.5}
    assert found.peer == {"eager": 5.0, "by frame": 8.0}
    assert "PyTorch compiled left out: RuntimeError: no compiler" in capsys.readouterr().out
    found = compare({"ours": lambda: Seconds(0.5)}, clip, peer, 1, ["by frame"], spell=0.1)
    assert (found.ours, found.peer) == ({"ours": 0.5}, {"by frame": 8.0})


def test_both_sides_of_the_limit_are_measured(peer):
    found = limit.measure(TINY, peer, runs=1, spell=0.0)
    assert found.sides == ["jax", "torch"]
    assert set(found.needed) == {product for _, product in found.took}
    assert found.seconds("torch") == sum(found.needed.values()) * len("product")
    assert limit.measure(TINY, None, runs=1, spell=0.0).sides == ["jax"]


def test_without_pytorch_there_is_no_comparison(capsys):
    with start("") as none:
        assert none is None
    assert "no comparison with PyTorch: not asked for" in capsys.readouterr().out
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert parser.parse_args([]).torch_python == sys.executable
    with pytest.raises(SystemExit, match="no such program"), start("no-python"):
        pass


def test_what_has_measured_itself_is_believed():
    calls = []
    took = in_turn({"theirs": lambda: Seconds(1e9), "ours": lambda: calls.append(1)}, runs=3)
    assert took["theirs"] == 1e9
    assert took["ours"] < 1e9
    assert len(calls) == 4  # the first compiles
    function = sustained(repeated(lambda: calls.append(1)), spell=0.0)
    assert len(calls) == 4 + 2 * 2  # to compile, to count; before each one that is not timed
    function()
    assert len(calls) == 10
    assert sustained(lambda calls: Seconds(0.25 * calls), spell=1.0)() == 1.0  # four in a row
