"""Measures a model on the sets of the study of transfer, and puts them side by side."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bsq_jax.cli.studies.report import save, text_table
from bsq_jax.cli.studies.settings import refuse
from bsq_jax.cli.studies.transfer.saved import Measured, evaluate, load_parts, set_config
from bsq_jax.cli.studies.transfer.sets import OWN_DATA, PictureSet
from bsq_jax.config import to_json
from bsq_jax.config.values import pair
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.records import fingerprint_of
from bsq_jax.data.sources import open_source
from bsq_jax.media.figures import dot_figure

FIGURE, MEASURED = "transfer.png", "study_measured.json"
_STARTER_REFERENCE = PictureSet("photos", "photos")  # its own pictures do not come with it
_CHOSEN = {
    "data.source": "use --reference and --sets",
    "data.val_source": "use --reference and --sets",
    "eval.inception": "use --inception",
}
FEWEST = 2048  # examples, that a Frechet distance of 2048 channels is not singular

Row = dict[str, Any]


def study(
    workdir: pathlib.Path,
    model: str | None,
    reference: PictureSet,
    sets: Sequence[PictureSet],
    inception: str,
    overrides: Sequence[str],
) -> str:
    """Measures; writes results, table and figure into `workdir`.

    Args:
      workdir: of the study.
      model: see `load_parts`.
      reference: pictures like those of the training.
      sets: other pictures.
      inception: file of Inception-v3 weights; empty: no FID.
      overrides: see `load_parts`.

    Returns:
      What to print at the end.

    Raises:
      UserError: the model or a setting is wrong, or no set can be read.
    """
    refuse(overrides, _CHOSEN)
    if model is None and reference == OWN_DATA:
        reference = _STARTER_REFERENCE
    all_sets = [reference, *sets]
    names = [each.name for each in all_sets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two sets are called {twice[0]!r}: give them different names")
    parts = load_parts(model, overrides)
    rows: list[Row] = []
    for number, each in enumerate(all_sets, 1):
        row = {"set": each.name, "source": each.source, "reference": each is reference}
        try:
            row |= _measure(workdir / each.name, parts, each, inception)
            said = "done"
        except (UserError, OSError) as error:
            said = row["problem"] = " ".join(f"not measured: {error}".split())
        rows.append(row)
        print(f"{number} of {len(all_sets)}: {each.name}: {said}", flush=True)
    if all("problem" in row for row in rows):
        raise UserError(f"no set was measured; {rows[0]['set']}: {rows[0]['problem']}")
    cells = table_rows(rows)
    record = save(workdir, rows, cells)
    draw(workdir / FIGURE, rows)
    missing = [f"{row['set']}: {row['problem']}" for row in rows if "problem" in row]
    return "\n".join(
        [text_table(cells, 1), *missing, f"report: {record}", f"picture: {workdir / FIGURE}"]
    )


def _measure(
    folder: pathlib.Path, parts: Mapping[str, Measured], pictures: PictureSet, inception: str
) -> Row:
    """What is measured of a set, now or by an earlier call with the same model and settings."""
    configs = {name: set_config(part, pictures.source, inception) for name, part in parts.items()}
    source = open_source(make_data_config(configs["tokenizer"]), "val")
    asked = {
        "pictures": fingerprint_of(source),
        **{name: [parts[name].identity, to_json(config)] for name, config in configs.items()},
    }
    path = folder / MEASURED
    kept = json.loads(path.read_bytes()) if path.exists() else {}
    if kept.get("asked") != asked:
        found = {
            name: evaluate(parts[name], config, folder / name) for name, config in configs.items()
        }
        model = configs["tokenizer"].model
        height, width = pair(model.patch_size)
        bits = model.bits / (height * width * model.patch_time)
        kept = {"asked": asked, "found": {"pictures": len(source), "raw_bpp": bits, **found}}
        write_atomic(path, (json.dumps(kept, indent=1) + "\n").encode())
    made: Row = kept["found"]
    return made


def _metric(key: str, part: str = "tokenizer") -> Callable[[Row], float | None]:
    return lambda row: row.get(part, {}).get("results", {}).get(key)


def _fid(row: Row) -> float | None:
    """FID where there are examples enough for it."""
    results = row.get("tokenizer", {}).get("results", {})
    return results.get("fid") if results.get("count", 0) >= FEWEST else None


# Value by title of the column; whether its difference to the reference is shown; format.
_COLUMNS: Mapping[str, tuple[Callable[[Row], float | None], bool, str]] = {
    "pictures": (lambda row: row.get("pictures"), False, "{:,d}"),
    "PSNR (dB)": (_metric("psnr"), True, "{:.2f}"),
    "SSIM": (_metric("ssim"), False, "{:.4f}"),
    "LPIPS": (_metric("lpips"), True, "{:.4f}"),
    "FID": (_fid, False, "{:.2f}"),
    "codes used": (_metric("codes_used"), False, "{:,d}"),
    "entropy per bit": (_metric("bit_entropy"), False, "{:.3f}"),
    "bits a pixel": (lambda row: row.get("raw_bpp"), False, "{:.3f}"),
    "with the prior": (_metric("coded_bpp", "prior"), True, "{:.3f}"),
}


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The table's cells: titles, then a row a set; columns without a value are left out."""
    reference = next(row for row in rows if row["reference"])
    columns: list[list[str]] = [["set", *(row["set"] for row in rows)]]
    for title, (value, compared, template) in _COLUMNS.items():
        found = [value(row) for row in rows]
        if all(each is None for each in found):
            continue
        columns.append([title, *(_text(each, template) for each in found)])
        own = value(reference)
        if compared and own is not None:
            signed = template.replace(":", ":+")
            others = [
                None if each is None or row is reference else each - own
                for each, row in zip(found, rows, strict=True)
            ]
            columns.append(["change", *(_text(each, signed) for each in others)])
    return [list(line) for line in zip(*columns, strict=True)]


def _text(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)


def draw(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Draws each set as a dot, a panel a metric, with a line at the reference."""
    titles = ("PSNR (dB)", "SSIM", "LPIPS", "with the prior")
    panels = {}
    for title in titles:
        value = _COLUMNS[title][0]
        known = {row["set"]: found for row in rows if (found := value(row)) is not None}
        if known:
            panels["bits a pixel, with the prior" if "prior" in title else title] = known
    if panels:
        reference = next(row["set"] for row in rows if row["reference"])
        dot_figure(path, panels, reference=reference)
