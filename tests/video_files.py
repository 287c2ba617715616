"""Writes small video files whose frames say which they are, by the grey they are painted with."""

from fractions import Fraction

import av
import numpy as np

_STEP = 4  # grey levels from one frame to the next: more than lossy coding changes


def write_video(path, count, *, size=(16, 16), codec="libx264", gop=8, times=None, rotate=0, **kw):
    """Writes ``count`` frames (at most 60), the n-th shown at ``times[n]`` ms (default 40 n).

    ``size`` is (height, width); ``kw`` are options of the encoder. Returns ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=kw)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotate:
            stream.set_display_rotation(rotate)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            frame.pts = 40 * number if times is None else times[number]
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def picture(number, size):
    """The frame's picture: grey, uint8 [height, width, 3]."""
    return np.full((*size, 3), 8 + _STEP * number, np.uint8)


def numbers_of(clip):
    """Which frames of a written video these are; uint8 [frames, height, width, 3]."""
    return np.rint((clip.mean(axis=(1, 2, 3)) - 8) / _STEP).astype(int)
