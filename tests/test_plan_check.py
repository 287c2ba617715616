"""`plan --check` and `plan --mesh best`. Oracle: planted violations, and arithmetic by hand."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from bsq_jax import cli
from bsq_jax.cli.planning import check as checking
from bsq_jax.cli.planning import check_report, layouts
from bsq_jax.cli.planning.machines import GIB, Machine
from bsq_jax.cli.planning.programs import Program
from bsq_jax.config import finalize, load_config_file, set_overrides
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.target import described
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.softmax import softmax_attention
from bsq_jax.training.lowered import read

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
HALF = ("--config.model.dtype=bfloat16", "--config.model.heads=2", "--config.model.width=32")


@pytest.fixture(autouse=True, scope="module")
def all_devices():
    """Starts JAX, before a plan may ask for fewer devices than this process has."""
    jax.devices()


MESH = functools.cache(lambda: make_mesh(devices=jax.devices()[:1]))


def config_of(*words, argument=""):
    config = load_config_file(f"{TINY}{argument}")
    set_overrides(config, words)
    return finalize(config)


def checked(monkeypatch, function, *arguments, platform="cuda", config=None):
    """What the check says of one program alone."""
    program = Program("a program", jax.jit(function), arguments)
    monkeypatch.setattr(checking, "programs_of", lambda *_: [program])
    (found,) = checking.check(config or config_of(*HALF), MESH(), [platform])
    return found


@functools.cache
def shapes(dtype=jnp.bfloat16):
    return [jax.ShapeDtypeStruct((4, 4), dtype)] * 2


@pytest.mark.smoke
def test_the_programs_of_a_config_pass(tmp_path, capsys):
    """In 16 bits on both platforms, in its report and as JSON."""
    file = tmp_path / "check.json"
    words = ["--config", TINY, "--check", "--json", str(file), *HALF]
    assert cli.main(["plan", *words]) == 0
    rows = json.loads(file.read_text())
    names = ("training step", "evaluation step", "encoding", "decoding")
    assert [(row["platform"], row["program"]) for row in rows] == [
        (platform, name) for platform in ("cuda", "tpu") for name in names
    ]
    for row in rows:
        assert row["violations"] == []
        flash = sum(times for name, times in row["calls"].items() if "fmha" in name)
        assert row["attention"][0].split()[0] == {"cuda": "cudnn"}.get(
            row["platform"], "dense" if "step" in row["program"] else "blocked"
        )
        assert (flash > 0) == (row["platform"] == "cuda")
    # Forwards, and gradients of inputs and weights: the latents alone are in float32.
    assert sum(rows[0]["allowed"].values()) == 3
    out = capsys.readouterr().out
    assert "8 programs, 0 violations" in out
    assert "cudnn (1 x 4 tokens)" in out


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (":clips", {"encoding a stream", "decoding a stream"}),
        (":prior=x", {"encoding with the prior", "decoding with the prior"}),
        (":masked_lm=x", {"sampling a frame", "decoding samples"}),
    ],
)
def test_other_kinds_of_models_have_their_programs(argument, expected):
    found = list(checking.check(config_of(argument=argument), MESH(), ["tpu"]))
    assert expected <= {each.program for each in found}
    assert not [line for each in found for line in each.violations]


def test_a_callback_is_reported(monkeypatch):
    def printing(x, y):
        jax.debug.print("{}", x[0, 0])
        return x @ y

    for platform in ("cuda", "tpu"):
        found = checked(monkeypatch, printing, *shapes(), platform=platform)
        assert found.violations, platform
        assert all(line.startswith("waits for the host: ") for line in found.violations)


def test_a_float32_product_is_reported_where_the_config_says_bfloat16(monkeypatch):
    @jax.named_scope("somewhere")
    def product(x, y):
        return x @ y

    found = checked(monkeypatch, product, *shapes(jnp.float32))
    (line,) = found.violations
    assert line.startswith(
        "float32 product, 1 times: jit(product)/somewhere/dot_general of 4x4xf32"
    )
    plain = checked(monkeypatch, product, *shapes(jnp.float32), config=config_of())
    assert not plain.violations

    @jax.named_scope("to_latent")
    def meant(x, y):
        return product(x, y)

    found = checked(monkeypatch, meant, *shapes(jnp.float32))
    assert (found.violations, sum(found.allowed.values())) == ((), 1)


def test_a_program_that_does_not_lower_is_reported(monkeypatch):
    def wrong(x, y):
        raise NotImplementedError("no rule\nfor this")

    (line,) = checked(monkeypatch, wrong, *shapes()).violations
    assert line == "does not lower: NotImplementedError: no rule for this"


@pytest.mark.parametrize(
    ("asked", "heads", "platform", "message"),
    [
        ("by_head", 2, "tpu", "attention by_head (1 x 4 tokens) is for a CPU's cache"),
        ("dense", 2, "cuda", "attention dense (1 x 4 tokens): model.attention=dense; take auto"),
        ("splash", 2, "cuda", "attention splash (1 x 128 tokens): its kernel is interpreted"),
        ("auto", 8, "cuda", "attention dense (1 x 4 tokens): cudnn is not used: heads have 4 chan"),
        ("auto", 2, "cuda", ""),
        ("auto", 8, "tpu", ""),
    ],
)
def test_another_attention_than_the_platforms_is_reported(
    monkeypatch, asked, heads, platform, message
):
    def attention(x):
        return attend(x, x, x, implementation=asked)

    tokens = 128 if asked == "splash" else 4
    x = jax.ShapeDtypeStruct((1, 1, tokens, heads, 32 // heads), jnp.bfloat16)
    found = checked(monkeypatch, attention, x, platform=platform)
    assert [line[: len(message)] for line in found.violations if line.startswith("attention")] == (
        [message] if message else []
    )


def test_violations_are_lines_and_a_status(monkeypatch, capsys):
    wrong = checking.Checked("encoding", "tpu", violations=("it is wrong", "and so is this"))
    monkeypatch.setattr(check_report, "check", lambda *_, **__: [wrong])
    assert cli.main(["plan", "--check", "--config", TINY]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-3:] == [
        f"violation: {TINY}, encoding, tpu: it is wrong",
        f"violation: {TINY}, encoding, tpu: and so is this",
        "1 programs, 2 violations",
    ]


def test_published_configs_are_all_variants():
    found = check_report.published()
    assert {"quickstart:muon", "tokenizer:ucf101", "prior:clips", "digits:masked_lm"} <= {*found}


def test_gradients_of_attention_are_products_of_16_bits():
    """On accelerators; and within their rounding the same as in float32."""
    rows = [jax.random.normal(jax.random.key(i), (2, 6, 8)) for i in range(3)]
    low = [row.astype(jnp.bfloat16) for row in rows]

    def gradients(*rows):
        loss = lambda *rows: jnp.sum(jnp.sin(softmax_attention(*rows).astype(jnp.float32)))  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(*rows)

    with described("tpu"):
        traced = jax.jit(gradients).trace(*low)
        assert not [p for p in read(traced.lower(lowering_platforms=("tpu",))).products if p.wide]
        ours = gradients(*low)
    for one, exact in zip(ours, gradients(*(row.astype(jnp.float32) for row in low)), strict=True):
        assert one.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(one.astype(jnp.float32) - exact)) < 0.02 * jnp.max(jnp.abs(exact))


# --- layouts ---

MACHINE = Machine("TPU v5 lite", 16, 1e9)  # 197 TFLOP/s


def layout(mesh, *, memory=1, flops=0.0, sent=0, limit=10, whole=True):
    seconds = layouts.estimate(flops, sent, MACHINE)
    return layouts.Layout(mesh, whole and memory <= limit, memory, whole, sent, flops, seconds)


def test_all_layouts_of_eight_devices():
    assert set(layouts.layouts_of(8, 4, 16)) == {
        *((8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1)),
        *((4, 1, 2), (2, 2, 2), (1, 4, 2)),
        *((2, 1, 4), (1, 2, 4)),
    }
    assert set(layouts.layouts_of(8, 1, 16)) == {(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1)}
    assert set(layouts.layouts_of(4, 4, 2)) == {(2, 1, 2), (1, 2, 2), (1, 1, 4)}


def test_an_estimate_by_hand():
    """A second of products at 40% of the peak, then two of exchanges."""
    assert layouts.estimate(0.4 * 197e12, 2e9, MACHINE) == pytest.approx(3.0)


def test_what_fits_comes_first_then_the_fastest():
    slow = layout((4, 1, 1), memory=9, sent=5e9)
    fast = layout((1, 4, 1), memory=8, flops=1e12, sent=1e9)
    as_fast_and_smaller = dataclasses.replace(fast, mesh=(2, 2, 1), memory=3)
    large = layout((2, 1, 2), memory=11)
    larger = layout((1, 2, 2), memory=40)
    least = layout((1, 1, 4), memory=10, whole=False)
    found = layouts.rank([larger, slow, least, fast, large, as_fast_and_smaller])
    assert found == [as_fast_and_smaller, fast, slow, large, larger, least]


def test_the_table_names_the_best_or_what_to_change():
    config = config_of()
    rows = layouts.rank([layout((4, 1, 1), memory=2 * GIB, limit=3 * GIB)])
    text = layouts.table(config, rows, MACHINE, 3 * GIB)
    assert text.splitlines()[-1].endswith(
        "--config.mesh.data=4 --config.mesh.fsdp=1 --config.mesh.tensor=1"
    )
    rows = layouts.rank([layout((4, 1, 1), memory=2 * GIB, limit=GIB)])
    last = layouts.table(config, rows, MACHINE, GIB).splitlines()[-1]
    assert last.startswith(
        "no layout fits into 1 GiB: 4x1x1 needs 2.000 GiB. Try --config.train.acc"
    )
    assert "--config.model.remat=full (now none)" in last


def test_layouts_are_compiled_and_the_state_alone_is_enough_to_refuse(eight_devices, capsys):
    words = ["plan", "--config", TINY, "--mesh", "best", "--devices", "2", "--device", "v5e"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all(mesh in out for mesh in ("2x1x1", "1x2x1", "1x1x2", "best of data"))
    assert cli.main([*words, "--memory", "0.0001"]) == 1
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "no layout fits into 0.0001 GiB" in out


def test_twice_the_devices_on_data_halve_the_flops_and_send_the_gradients(eight_devices):
    config = config_of()
    devices = jax.devices()
    step = layouts.compile_step
    one, two = (step(config, make_mesh(n, 1, 1, devices=devices[:n])).work for n in (1, 2))
    assert two.flops == pytest.approx(one.flops / 2, rel=0.05)
    state = layouts.state_bytes(config, make_mesh(2, 1, 1, devices=devices[:2]))
    assert two.sent == pytest.approx(2 * state["parameters"], rel=0.05)
    assert one.sent == 0
