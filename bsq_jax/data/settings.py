"""What to read and how: the typed settings of the pipeline, checked."""

import dataclasses

from bsq_jax.core.errors import UserError
from bsq_jax.data import transforms

EVAL_CROPS = ("center", "tiles")


@dataclasses.dataclass(frozen=True)
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
        picture that is enlarged and more than 16 times as long as wide those of the middle.
      filter: Resize filter in training, a key of :data:`bsq_jax.data.transforms.FILTERS`;
        'bilinear' resizes in half the time that 'lanczos' takes.
      eval_filter: Resize filter in evaluation; published figures are mostly with 'lanczos'.
      threads: Reading threads; 0 reads in the caller's.
      prefetch: Batches held ready.
      cache_mb: Memory for resized frames, in MiB; 0 decodes anew each time.
      max_broken: Largest fraction of records that may be unreadable, rounded up to whole records.
      frames: Length of a clip, in training the greatest. What applies to a picture above applies
        alike to all frames of a clip. A source of pictures gives clips of one frame whatever this
        says.
      stride: Frames of the video from one frame of a clip to the next; 1 takes every frame.
      min_frames: Shortest clip in training: lengths are uniform from here to ``frames``, and each
        step has clips of about one length, see :mod:`bsq_jax.data.lengths`. 0 makes all of
        ``frames``.
      image_share: Share of training steps whose examples are single frames, drawn at random.
      image_source: Spec of where these come from, pictures or videos; '' takes ``source``. Only
        its train split is used.
      eval_clips: Clips of each validation video, evenly spaced from its beginning to its end; one
        alone is from the middle. They coincide where a video is short.
      seed: Seed of the order and the augmentation.
      labels: Whether batches say the class of each example.
    """

    source: str = "photos"
    val_source: str = ""
    image_size: int | tuple[int, int] = 64
    resize: int = 160
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    permute_channels: float = 0.0
    eval_resize: int = 160
    eval_crop: str = "center"
    filter: str = "lanczos"
    eval_filter: str = "lanczos"
    threads: int = 2
    prefetch: int = 4
    cache_mb: int = 256
    max_broken: float = 0.01
    frames: int = 1
    stride: int = 1
    min_frames: int = 0
    image_share: float = 0.0
    image_source: str = ""
    eval_clips: int = 1
    seed: int = 0
    labels: bool = False

    def __post_init__(self):
        """Checks every field; raises ``UserError`` with the field's name."""
        crop = self.crop
        if len(crop) != 2 or min(crop) < 1:
            raise UserError(f"image_size must be positive, got {self.image_size}")
        if self.resize and self.resize < min(crop):
            raise UserError(f"resize={self.resize} is below image_size: use {min(crop)} or more")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale must be (lowest, highest), both positive, got {self.scale}")
        if self.eval_resize < max(crop):
            raise UserError(
                f"eval_resize={self.eval_resize} is below image_size: use {max(crop)} or more"
            )
        if self.eval_crop not in EVAL_CROPS:
            raise UserError(f"eval_crop={self.eval_crop!r} is not one of {', '.join(EVAL_CROPS)}")
        for name in ("filter", "eval_filter"):
            if getattr(self, name) not in transforms.FILTERS:
                known = ", ".join(transforms.FILTERS)
                raise UserError(f"{name}={getattr(self, name)!r} is not one of {known}")
        for name in ("threads", "prefetch", "cache_mb"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("frames", "stride", "eval_clips"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.min_frames <= self.frames:
            raise UserError(
                f"min_frames must be from 0 (all clips equally long) to frames={self.frames}, "
                f"got {self.min_frames}"
            )
        for name in ("max_broken", "permute_channels", "image_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction from 0 to 1, got {getattr(self, name)}")
        if self.image_source and not self.image_share:
            raise UserError(
                f"image_source={self.image_source!r} is not read while image_share is 0: "
                "set the share, or leave the source out"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of every crop."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])
