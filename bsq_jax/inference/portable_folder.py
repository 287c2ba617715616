"""The folder of `bsq_jax.inference.portable`: programs, weights, what they are, and a self-test."""

from __future__ import annotations

import hashlib
import io
import json
import os
from typing import Any

import jax
import jaxlib
import numpy as np

import bsq_jax
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.paths import local_path
from bsq_jax.inference.portable import PLATFORMS, PROGRAMS, Portable, make_portable
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training.export import identity

FORMAT = "bsq_jax stablehlo"
VERSION = 1
MANIFEST = "manifest.json"
SELF_TEST = "self_test.npz"

_README = """\
# {name} as StableHLO

`encode.bin` and `decode.bin` are programs of `jax.export` for {platforms}; `encode.npz` and
`decode.npz` are their weights. They need `pip install jax numpy flatbuffers`, on a GPU or TPU the
jax for it, and nothing else. In this folder:

```python
import jax.export
import numpy as np

def load(name, folder="."):
    with open(f"{{folder}}/{{name}}.bin", "rb") as file:
        program = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
    with np.load(f"{{folder}}/{{name}}.npz") as arrays:
        weights = jax.device_put(dict(arrays))
    return lambda array: np.asarray(program(weights, array))

encode, decode = load("encode"), load("decode")
with np.load("{self_test}") as arrays:
    test = dict(arrays)
for made, wanted in ((encode(test["pixels"]), "bits"), (decode(test["bits"]), "decoded")):
    print(f"{{wanted}}: {{np.mean(made == test[wanted]):.2%}} as on the CPU of the export")
```

- `encode`: uint8 pixels (0 to 255) `[{pixels}]` to uint8 bits (0 or 1) `[{bits}]`.
- `decode`: such bits to uint8 pixels.
- {sizes}
- On a CPU with the same jaxlib the self-test gives 100.00% twice. Other devices and versions take
  sums in another order: a latent close to a border may then give another bit, and a pixel may be
  off by one.
- `{manifest}` has the fingerprint of the model, shapes, types, ranges and versions.
"""


class PortableFolder:
    """What the folder of a tokenizer's programs holds; see docs/deployment.md.

    ::

        PortableFolder(Tokenizer.load("runs/quickstart", dtype="float32")).save("deployed")

    Attributes:
      portable: the programs.
      files: all files by name, `MANIFEST` last.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
    ):
        """Exports both programs and computes the self-test.

        Args:
          tokenizer: the tokenizer; the programs compute in its dtype.
          size: (height, width) in pixels of all pictures, as in `make_portable`.
          frames: of all clips of a video model, likewise.

        Raises:
          UserError: as `make_portable`, or the network cannot be exported.
        """
        self.portable = portable = make_portable(tokenizer, size=size, frames=frames)
        self.files: dict[str, bytes] = {}
        described = _described(tokenizer, portable)
        for name in PROGRAMS:
            program = portable.exported(name)
            described["made_with"]["calling_convention"] = program.calling_convention_version
            self.files[f"{name}.bin"] = bytes(program.serialize())
            self.files[f"{name}.npz"] = _npz(portable.weights[name])
        pixels = _picture(portable)
        bits = portable.computed("encode", pixels)
        decoded = portable.computed("decode", bits)
        self.files[SELF_TEST] = _npz({"pixels": pixels, "bits": bits, "decoded": decoded})
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        described["sha256"] = sums
        self.files["README.md"] = _readme(described, portable).encode()
        self.files[MANIFEST] = (json.dumps(described, indent=2) + "\n").encode()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the files; those of these names that are there are replaced.

        Args:
          path: the folder; made if need be.

        Raises:
          UserError: it cannot be written.
        """
        folder = local_path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in self.files.items():
                write_atomic(folder / name, data)
        except OSError as error:
            raise UserError(f"cannot write the export {folder}: {error.strerror}") from error


def _described(tokenizer: Tokenizer, portable: Portable) -> dict[str, Any]:
    """What `MANIFEST` says, but for the checksums."""
    shape, layout = portable.shape, tokenizer.model.quantizer.layout
    pixels, bits = (_array(portable, program) for program in PROGRAMS)
    # Whole groups of frames come out.
    frames = shape.video_frames(shape.token_frames(portable.frames))
    decoded = dict(pixels, shape=list(pixels["shape"]))
    if portable.clips:
        decoded["shape"][1] = frames
    arrays = {"encode": (pixels, bits), "decode": (bits, decoded)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {
            "fingerprint": identity(tokenizer.config, tokenizer.params).hex(),
            **{k: v for k, v in tokenizer.origin.items() if k in ("name", "step", "weights")},
        },
        "made_with": {
            "bsq_jax": bsq_jax.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
        },
        "platforms": list(PLATFORMS),
        "dtype": tokenizer.config.model.dtype,
        "patch": {"height": shape.patch[0], "width": shape.patch[1], "time": shape.patch_time},
        "bits": shape.bits,
        "codes": {"stages": layout.stages, "bits": layout.bits, "codes": layout.codes},
        "size": list(portable.size) if portable.size else None,
        "why_one_size": portable.fixed or None,
        "most": portable.most,
        "programs": {
            name: {
                "program": f"{name}.bin",
                "weights": f"{name}.npz",
                "input": given,
                "output": made,
            }
            for name, (given, made) in arrays.items()
        },
        "self_test": {
            "file": SELF_TEST,
            "encode": ["pixels", "bits"],
            "decode": ["bits", "decoded"],
            "computed_on": "cpu",
        },
    }


def _array(portable: Portable, program: str) -> dict[str, Any]:
    """Axes, shape, type and range of what a program is given."""
    encode = program == "encode"
    last = ("height", "width", "channel") if encode else ("row", "column", "bit")
    return {
        "axes": ["batch", *(["time"] if portable.clips else []), *last],
        "shape": [n if isinstance(n, int) else str(n) for n in portable.given(program)],
        "dtype": "uint8",
        "range": [0, 255 if encode else 1],
    }


def _picture(portable: Portable) -> np.ndarray:
    """Pixels to test with, a picture or clip of waves and noise, uint8 as ``encode`` takes them.

    Where the size is open, three windows by five, less a row and a column of patches.
    """
    high, wide = portable.shape.patch
    side = portable.shape.spatial_window
    size = portable.size or ((3 * side - 1) * high, (5 * side - 1) * wide)
    leading = [portable.frames] if portable.clips else []
    down, across, channel = np.ogrid[: size[0], : size[1], :3]
    waves = 90 * np.sin(down / 7) * np.cos(across / (5 + 3 * channel))
    noise = np.random.default_rng(0).normal(scale=20, size=(1, *leading, *size, 3))
    return np.clip(np.round(waves + noise + 128), 0, 255).astype(np.uint8)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _readme(described: dict[str, Any], portable: Portable) -> str:
    high, wide = portable.shape.patch
    pixels, bits = (
        ", ".join(map(str, described["programs"][name]["input"]["shape"])) for name in PROGRAMS
    )
    sizes = "Height, width" + (" and frames" if portable.clips else "")
    if portable.size:
        sizes += " are fixed" + (f": {portable.fixed}." if portable.fixed else ".")
    else:
        multiples = f"{high}" if high == wide else f"{high} and {wide}"
        sizes = (
            f"Height and width may be any multiples of {multiples}; fill others up with "
            '`np.pad(..., mode="edge")` and cut what is decoded. Each size is compiled once.'
        )
    return _README.format(
        name=described["model"].get("name", "A tokenizer"),
        platforms=", ".join(PLATFORMS),
        pixels=pixels,
        bits=bits,
        sizes=sizes,
        self_test=SELF_TEST,
        manifest=MANIFEST,
    )
