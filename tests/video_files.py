"""Writes small video files whose frames say which they are."""

from fractions import Fraction

import av
import numpy as np

_STEP = 4  # grey levels from one frame to the next: more than lossy coding changes
# Keeps every byte, with frames that depend on others: for ``picture=coordinates``.
LOSSLESS = {"codec": "libx264rgb", "pix_fmt": "rgb24", "qp": "0"}


def grey(number, size):
    """The picture of a frame, at most 60, that says by its grey which it is."""
    return np.full((*size, 3), 8 + _STEP * number, np.uint8)


def numbers_of(clip):
    """Which frames of a video of greys these are; uint8 [frames, height, width, 3]."""
    return np.rint((clip.mean(axis=(1, 2, 3)) - 8) / _STEP).astype(int)


def coordinates(number, size):
    """A picture whose pixels say where they are: red the row, green the column, blue the frame."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    return np.stack([rows, columns, np.full_like(rows, number)], axis=-1).astype(np.uint8)


def write_video(
    path,
    count,
    *,
    picture=grey,
    size=(16, 16),
    codec="libx264",
    pix_fmt="yuv420p",
    gop=8,
    times=None,
    rotate=0,
    flags="",
    **options,
):
    """Writes ``count`` frames, 25 a second, or the n-th shown at ``times[n]`` ms.

    ``size`` is (height, width), ``gop`` the frames from one key frame to the next, ``rotate`` what
    players are told to turn the picture by, in degrees counterclockwise; ``flags`` are of the
    container and ``options`` of the encoder. Returns ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, 25) if times is None else Fraction(1, 1000)
    if codec == "libx264":
        options = {"x264-params": "scenecut=0", **options}
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.bit_rate = 4_000_000
        stream.gop_size = gop
        stream.codec_context.time_base = base
        if rotate:
            stream.set_display_rotation(rotate)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
