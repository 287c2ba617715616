"""What to read and how: the typed settings of the pipeline."""

import dataclasses
from fractions import Fraction
from typing import Self

from bsq_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to read and how; lengths in pixels, durations in frames.

    Attributes:
      source: Spec of the pictures or videos, see :func:`bsq_jax.data.sources.make_source`.
      val_source: Spec for validation; '' takes the val split of ``source``.
      image_size: Side of the square crop, or (height, width).
      resize: Short side of a picture before it is cropped in training; 0 keeps the file's size.
      scale: (lowest, highest) factor between the window cut out and the crop, log-uniform.
      flip: Whether half of the training crops are mirrored left and right.
      permute_channels: Share of training crops whose colour channels are put in a random order;
        makes more colours out of few pictures.
      eval_resize: Short side of a picture before it is cropped in evaluation.
      eval_crop: 'center' cuts one crop a picture; 'tiles' cuts every non-overlapping one, of a
        picture that is enlarged and more than 16 times as long as wide those of the middle;
        'bucket' cuts the middle of a picture that is resized to cover one of ``sizes``, see
        :mod:`bsq_jax.data.size_buckets`.
      sizes: (height, width) of the crops in training, one of them a step; empty: all are of
        ``image_size``.
      filter: Resize filter in training, a key of :data:`bsq_jax.data.transforms.FILTERS`;
        'bilinear' resizes in half the time that 'lanczos' takes.
      eval_filter: Resize filter in evaluation; published figures are mostly with 'lanczos'.
      backend: What decodes and resizes in training: 'pillow', or 'simd', see
        :mod:`bsq_jax.data.simd`.
      threads: Reading threads; 0 reads in the caller's.
      prefetch: Batches held ready.
      cache_mb: Memory for resized frames, in MiB; 0 decodes anew each time.
      max_broken: Largest fraction of records that may be unreadable, rounded up to whole records.
      frames: Length of a clip, in training the greatest. What applies to a picture above applies
        alike to all frames of a clip. A source of pictures gives clips of one frame whatever this
        says.
      stride: Frames of the video from one frame of a clip to the next; 1 takes every frame.
      min_frames: Shortest clip in training: lengths are uniform from here to ``frames``, and each
        step has clips of about one length, see :mod:`bsq_jax.data.clip_lengths`. 0 makes all of
        ``frames``.
      image_share: Share of training steps whose examples are single frames, drawn at random.
      image_source: Spec of where these come from, pictures or videos; '' takes ``source``. Only
        its train split is used.
      eval_clips: Clips of each validation video, evenly spaced from its beginning to its end; one
        alone is from the middle. They coincide where a video is short.
      seed: Seed of the order and the augmentation.
      labels: Whether batches say the class of each example.
    """

    source: str
    val_source: str
    image_size: int | tuple[int, int]
    resize: int
    scale: tuple[float, float]
    flip: bool
    permute_channels: float
    eval_resize: int
    eval_crop: str
    sizes: tuple[tuple[int, int], ...]
    filter: str
    eval_filter: str
    backend: str
    threads: int
    prefetch: int
    cache_mb: int
    max_broken: float
    frames: int
    stride: int
    min_frames: int
    image_share: float
    image_source: str
    eval_clips: int
    seed: int
    labels: bool

    def __post_init__(self):
        """Checks what must fit together; ranges are those of `bsq_jax.config.settings`.

        Raises:
          UserError: the message names the fields.
        """
        crop = self.crop
        if self.resize and self.resize < min(crop):
            raise UserError(f"resize={self.resize} is below image_size: use {min(crop)} or more")
        if self.scale[0] > self.scale[1]:
            raise UserError(f"scale must be (lowest, highest), got {self.scale}")
        if self.eval_resize < max(crop):
            raise UserError(
                f"eval_resize={self.eval_resize} is below image_size: use {max(crop)} or more"
            )
        if self.min_frames > self.frames:
            raise UserError(
                f"min_frames must be from 0 (all clips equally long) to frames={self.frames}, "
                f"got {self.min_frames}"
            )
        if self.image_source and not self.image_share:
            raise UserError(
                f"image_source={self.image_source!r} is not read while image_share is 0: "
                "set the share, or leave the source out"
            )

    def of_one_size(self) -> Self:
        """The same without ``sizes``: all crops are of ``image_size``."""
        center = self.eval_crop.replace("bucket", "center")
        return dataclasses.replace(self, sizes=(), eval_crop=center)

    @property
    def cover(self) -> Fraction:
        """How many times a picture covers its size in training; 0: it is not resized."""
        return Fraction(self.resize, min(self.crop))

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of every crop, unless there are ``sizes``."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])
