"""Figures of panels. Oracle: the colours of lines, counted in the picture."""

import numpy as np
import pytest
from PIL import Image

from bsq_jax.media.figures import dot_figure, panel_figure


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


def test_panels_of_one_range(tmp_path):
    """A value is at one height in all panels, and ticks are where they are asked for."""
    flat = {"one": {"a": [(0.0, 1.0), (9.0, 1.0)]}, "other": {"a": [(0.0, 1.0), (9.0, 5.0)]}}
    heights, dark = {}, {}
    for same in (False, True):
        path = tmp_path / f"{same}.png"
        panel_figure(path, flat, x="x", same_y=same, ticks={4.0: ""} if same else None)
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        blue = np.all(pixels == (0x00, 0x72, 0xB2), axis=-1)
        blue[800:] = False  # the legend
        rows = [np.flatnonzero(half.any(axis=1)) for half in (blue[:, :990], blue[:, 990:])]
        heights[same] = [int(each.max()) for each in rows]
        # Under the axes: the ends of ticks.
        frame = np.flatnonzero((pixels[:, 200:900].sum(axis=-1) < 60).mean(axis=1) > 0.9).max()
        below = pixels[frame + 4, :990].sum(axis=-1) < 200
        dark[same] = int(np.count_nonzero(np.diff(below.astype(int)) == 1))
    assert (
        abs(heights[True][0] - heights[True][1]) <= 1 < abs(heights[False][0] - heights[False][1])
    )
    assert dark[True] == 1 < dark[False]


@pytest.mark.parametrize("others", [(1.0,), (3.0, 5.0), (1.0, 5.0, 3.0)])
def test_dots_beside_a_reference(tmp_path, others):
    """Dots are in the order of names, and where their values are to the reference's."""
    values = {"own": 3.0, **{f"{number}": value for number, value in enumerate(others)}}
    path = tmp_path / "dots.png"
    dot_figure(path, {"PSNR": values}, reference="own")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    dots, own = (
        np.all(pixels == colour, axis=-1) for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00))
    )
    rows = np.flatnonzero(dots.any(axis=1))
    assert np.flatnonzero(own.any(axis=1)).max() < rows.min()
    groups = np.split(rows, np.flatnonzero(np.diff(rows) > 5) + 1)
    at = np.flatnonzero(own.any(axis=0)).mean()
    right = [np.flatnonzero(dots[group].any(axis=0)).mean() - at for group in groups]
    assert [int(np.sign(np.round(place / 5))) for place in right] == [
        int(np.sign(value - 3.0)) for value in others
    ]
