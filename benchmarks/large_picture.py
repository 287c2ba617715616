"""Memory of the codec on a large photograph. Run ``python -m benchmarks.large_picture``.

The photograph is that of an astronaut inside scikit-image, enlarged to 3000x4000 pixels (or what
``--size`` says). It is encoded and decoded by the commands ``encode`` and ``decode``, each in a
process of its own whose peak of resident memory counts. Memory does not depend on what the weights
are: without ``--model`` they are random, of the quickstart's network with attention within windows
of 8x8 tokens, and with ``--prior`` also of the prior of ``configs/prior.py`` with a reach of 2 rows
and 4 columns.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from PIL import Image
from skimage import data

from benchmarks.random_codec import random_codec
from benchmarks.timing import report


def run(*words: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command in a process of its own."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bsq_jax", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a workdir or export; default: random weights")
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000), help="height, width")
    parser.add_argument("--tile", nargs="+", default=["auto"], help="as that of encode; several")
    parser.add_argument("--memory", nargs="+", default=[], help="as that of encode; several")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    parser.add_argument("--prior", action="store_true", help="random weights of a prior too")
    parser.add_argument("--random-model", type=pathlib.Path, help="only export random weights")
    args = parser.parse_args()
    if args.random_model:
        prior = {"reach": (2, 4)} if args.prior else None
        codec = random_codec(prior, spatial_window=8, positions="window")
        codec.save(args.random_model)
        return
    height, width = args.size
    settings = [("--tile", tile) for tile in args.tile] + [("--memory", mb) for mb in args.memory]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source, coded, decoded = (str(folder / f"a.{end}") for end in ("png", "bsq", "out.png"))
        Image.fromarray(data.astronaut()).resize((width, height)).save(source)
        model = args.model or str(folder / "model")
        if not args.model:
            # In a process of its own: what this one has needed would count as the commands' peak.
            made = [sys.executable, "-m", "benchmarks.large_picture", "--random-model", model]
            made += ["--prior"] * args.prior
            subprocess.run(made, check=True)
        for setting in settings:
            for kind, words in (
                ("encode", ("encode", source, coded, *setting)),
                ("decode", ("decode", coded, decoded)),
            ):
                seconds, peak = run(*words, "--model", model, "--force")
                rows.append(
                    {"command": kind, "setting": " ".join(setting), "seconds": seconds}
                    | {"peak MB": peak, "bytes": pathlib.Path(coded).stat().st_size}
                )
    report(f"a picture of {height}x{width}", rows, args.json, model=args.model or "random")


if __name__ == "__main__":
    main()
