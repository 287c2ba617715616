"""Model cards: ``README.md`` of an export, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from bsq_jax import __version__
from bsq_jax.config import default_config, finalize, from_json, to_json
from bsq_jax.config.values import flatten
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.training.export import CONFIG_FILE, describe_export, weights_file
from bsq_jax.training.hub import PACKAGE, TOKENIZER_FOLDER
from bsq_jax.training.public_config import public_source, without_paths

CARD = "README.md"
ADDRESS = "hf://OWNER/NAME"
"""Stands in a card for the address, until it is known."""
LOADERS = {"tokenizer": "Tokenizer", "prior": "Codec", "masked_lm": "Generator"}
_KINDS = {
    "tokenizer": "A tokenizer",
    "prior": "A codec (a tokenizer and a prior on its tokens)",
    "masked_lm": "A generator (a masked language model and the tokenizer of its tokens)",
}
# Results of an evaluation that the metadata has, as the hub names them.
_METRICS = ("psnr", "ssim", "ms_ssim", "lpips", "fid", "fvd")
_COUNTS = ("count", "frames")  # which the sentence above the table has
_SETTINGS = ("model", "quantizer", "loss", "optimizer")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_card(
    folder: pathlib.Path, workdir: pathlib.Path | None = None, license_id: str | None = None
) -> None:
    """Writes the card of an export into it, in place of an older one.

    Args:
      folder: the export.
      workdir: of its run, whose evaluation is told if it is one of the same step.
      license_id: as the hub writes it, such as ``apache-2.0``; None: the card says that none is
        stated.

    Raises:
      UserError: the export is damaged, or the license is not written so.
    """
    text = with_license(make_card(folder, _evaluation(workdir)), license_id)
    write_atomic(folder / CARD, text.encode())


def make_card(folder: pathlib.Path, report: Mapping[str, Any] | None = None) -> str:
    """The text of a card: metadata in YAML, and Markdown.

    Args:
      folder: an export.
      report: of an evaluation, the content of ``evaluation.json``; None: there is none.

    Raises:
      UserError: the export is damaged.
    """
    described, _ = without_paths(describe_export(folder))
    config = finalize(from_json(described["config"], str(folder / CONFIG_FILE)))
    task = config.task
    shape = make_tokenizer(config).shape
    sets = list(described["weights"])
    if report is not None and report.get("step") != described["origin"].get("step"):
        report = None
    results = _results(report, sets[-1])
    name = str(described["origin"].get("name") or config.name)
    rows, columns = shape.grid
    moving = shape.frames > 1
    size = f"{shape.image_height}x{shape.image_width}"
    sizes = "pictures of any size" if shape.spatial_window else f"made for {size}, tiles of larger"
    stages = f", {config.quantizer.stages} stages" if config.quantizer.stages > 1 else ""
    patch = f"{shape.patch[0]}x{shape.patch[1]}"
    source = public_source(config.data.source)
    facts = {
        "bits a token": f"{shape.bits}" + _fewer(shape.prefixes),
        "patch": f"{patch} pixels" + (f", {shape.patch_time} frames" if moving else ""),
        "size": f"{size} pixels, {rows}x{columns} tokens; {sizes}",
        "frames": f"up to {shape.frames}" if moving else "1 (pictures)",
        "quantizer": f"{config.quantizer.name}{stages}",
        "parameters": _parameters(folder, described, task),
        "trained on": _training(described, source),
        "made with": f"bsq_jax {__version__}",
    }
    if task != "tokenizer":
        inside, _ = without_paths(describe_export(folder / TOKENIZER_FOLDER))
        data = from_json(inside["config"], str(folder / TOKENIZER_FOLDER / CONFIG_FILE)).data
        facts["tokenizer trained on"] = _training(inside, public_source(data.source))
    parts = [
        _metadata(task, moving=moving, config=config, name=name, source=source, results=results),
        f"# {name}\n\n{_KINDS[task]} of {'videos and pictures' if moving else 'pictures'}, for "
        "bsq_jax, a JAX implementation of "
        "[binary spherical quantization](https://arxiv.org/abs/2406.07548).",
        _table(("", ""), facts),
        _loading(task),
        _measured(report, results, half=described["version"] == 3),
        _deviations(config, task),
        "## Limits\n\nReconstructions are lossy: fine texture, small text and faces change. "
        "Reconstructions get worse as pictures differ more from the training data. Tokens are the "
        "same to the bit in one dtype on one kind of device.",
    ]
    return "\n\n".join(parts) + "\n"


def with_license(card: str, license_id: str | None) -> str:
    """A card whose metadata state a license.

    Args:
      card: with or without one.
      license_id: as the hub writes it; None changes nothing.

    Raises:
      UserError: it is not written so, or the metadata of the card have no end.
    """
    if license_id is None:
        return card
    if not _LICENSE.fullmatch(license_id):
        raise UserError(
            f"--license {license_id}: write it as the hub does, such as apache-2.0, mit or other"
        )
    if not card.startswith("---\n"):
        return f"---\nlicense: {license_id}\n---\n\n{card}"
    head, end, rest = card.partition("\n---")
    if not end:
        raise UserError(
            f"{CARD} begins with --- and no second line --- ends its metadata (--license): add it"
        )
    lines = [line for line in head.splitlines() if not line.startswith("license:")]
    return "\n".join([lines[0], f"license: {license_id}", *lines[1:]]) + "\n---" + rest


def _evaluation(workdir: pathlib.Path | None) -> dict[str, Any] | None:
    """The report of a run's own evaluation, if there is one that can be read."""
    if workdir is None:
        return None
    try:
        report = json.loads((workdir / "evaluation.json").read_bytes())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def _results(report: Mapping[str, Any] | None, name: str) -> dict[str, float]:
    """The numbers that were measured of a set of weights."""
    found = {} if report is None else report.get("results", {}).get(name, {})
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _metadata(
    task: str, *, moving: bool, config: Any, name: str, source: str, results: Mapping[str, float]
) -> str:
    """The front matter; texts in JSON, which is YAML."""
    tags = ["bsq", "jax", "flax", "safetensors", f"quantizer-{config.quantizer.name}"]
    tags += ["video" if moving else "image", {"masked_lm": "generation"}.get(task, "tokenizer")]
    tags += ["compression"] if task == "prior" else []
    lines = ["---", "library_name: bsq_jax"]
    pipeline = {
        "tokenizer": "image-feature-extraction",
        "masked_lm": "unconditional-image-generation",
    }
    if task in pipeline and not moving:
        lines.append(f"pipeline_tag: {pipeline[task]}")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    metrics = {key: value for key, value in results.items() if key in _METRICS}
    if metrics:
        data = json.dumps(source)
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        lines += ["  - task:", "      type: image-reconstruction", "    dataset:"]
        lines += [f"      name: {data}", f"      type: {data}", "    metrics:"]
        for key, value in metrics.items():
            lines += [f"    - type: {key}", f"      value: {value:.6g}"]
    return "\n".join([*lines, "---"])


def _training(described: Mapping[str, Any], source: str) -> str:
    """Data and steps of a training. With several sizes a step has other numbers of crops."""
    config, steps = described["config"], described["origin"].get("step", "unknown")
    batch = f"{config['train']['batch_size']}"
    if config["data"].get("sizes"):
        side = "x".join(map(str, config["model"]["image_size"]))
        batch = f"as many pixels as {batch} crops of {side}"
    return f"{source}, {steps} steps of {batch}"


def _fewer(prefixes: tuple[int, ...]) -> str:
    """Which first bits of a token can be decoded by themselves."""
    if len(prefixes) < 2:
        return ""
    return f" (decodes from its first {', '.join(map(str, prefixes[:-1]))} too)"


def _parameters(folder: pathlib.Path, described: Mapping[str, Any], task: str) -> str:
    """Numbers of parameters and sizes of files."""
    found = []
    parts = [("", folder, described)]
    if task != "tokenizer":
        inside = folder / TOKENIZER_FOLDER
        parts.append((f"{TOKENIZER_FOLDER}/", inside, describe_export(inside)))
    for prefix, place, about in parts:
        for name, entry in about["weights"].items():
            size = (place / weights_file(name)).stat().st_size / 1e6
            found.append(
                f"{entry['num_params']:,d} in {prefix}{weights_file(name)} ({size:.1f} MB)"
            )
    return "; ".join(found)


def _loading(task: str) -> str:
    loader = LOADERS[task]
    uses = {
        "tokenizer": "bits = model.encode(picture)  # uint8 [height, width, 3], a path, a batch\n"
        'again = model.decode(bits, dtype="uint8")',
        "prior": "data = model.encode(picture)  # the bytes of a .bsq file\n"
        "frames = model.decode(data).frames",
        "masked_lm": "pictures = model.sample(16)  # uint8 [16, height, width, 3]",
    }
    return (
        f"## Loading\n\n```python\nfrom bsq_jax import {loader}\n\n"
        f"model = {loader}.load(\"{ADDRESS}\")  # needs pip install '{PACKAGE}'; or a folder\n"
        f"{uses[task]}\n```"
    )


def _measured(report: Mapping[str, Any] | None, results: Mapping[str, float], *, half: bool) -> str:
    if report is None or not results:
        return "## Evaluation\n\nNo evaluation of this step lies in the run's folder."
    about = report.get("measured", {})
    count, what = about.get("count"), "example"
    if count is None:  # of a prior
        count, what = int(results.get("frames", 0)), "frame"
    told = [f"{count:,d} {what}{'s' * (count != 1)}"]
    told += [f"of `{public_source(str(about['source']))}`" if "source" in about else ""]
    told += [f"({about['split']})" if "split" in about else ""]
    told += ["before the weights were rounded to float16"] if half else []
    table = {f"`{key}`": f"{value:.6g}" for key, value in results.items() if key not in _COUNTS}
    text = f"## Evaluation\n\nOn {' '.join(filter(None, told))}:\n\n"
    text += _table(("metric", "value"), table)
    # Those that say how to measure more are for its maker.
    notes = [str(note) for note in report.get("notes", ()) if "--config" not in str(note)]
    return "\n\n".join([text, *(["\n".join(f"- {note}" for note in notes)] if notes else [])])


def _deviations(config: Any, task: str) -> str:
    """The settings that differ from the package's defaults."""
    names = [*_SETTINGS, *([] if task == "tokenizer" else [task])]
    found, defaults = to_json(config), to_json(default_config())
    before = dict(flatten({name: defaults[name] for name in names}))
    after = dict(flatten({name: found[name] for name in names}))
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in sorted(after.items())
        if value != before.get(key) and not key.endswith(".tokenizer")
    ]
    told = "\n".join(lines) or "none"
    return f"## Settings\n\nThose that differ from the package's defaults:\n\n```\n{told}\n```"


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items())])
