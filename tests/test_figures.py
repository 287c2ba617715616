"""Figures of panels. Oracle: the colours of lines, counted in the picture."""

import numpy as np
import pytest
from PIL import Image

from bsq_jax.media.figures import panel_figure


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_figure_of_panels(tmp_path, logarithmic):
    """The colour of each line is in each panel that has it, and nowhere else."""
    panels = {
        "PSNR (dB)": {"first": [(0.3, 30.0), (0.1, 20.0)], "second": [(0.2, 25.0), (0.9, 40.0)]},
        "LPIPS": {"second": [(0.2, 0.4), (0.9, 0.1)]},
    }
    path = tmp_path / "figures" / "a.png"
    panel_figure(path, panels, x="bits a pixel", logarithmic=logarithmic, bold=["first"])
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape == (990, 1980, 3)
    halves = pixels[:800, :990], pixels[:800, 990:]
    seen = [
        [bool((half == colour).all(axis=-1).sum() > 50) for half in halves]
        for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00))
    ]
    assert seen == [[True, False], [True, True]]
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
