"""Files that another checkpoint of a run coded: which one, and what to do where it is gone."""

from __future__ import annotations

import logging
import pathlib
from typing import TYPE_CHECKING, Generic, TypeVar

from bsq_jax.coding.container import Header
from bsq_jax.core.errors import UserError
from bsq_jax.training.saved_models import kept_steps

if TYPE_CHECKING:
    from bsq_jax.coding.codec_model import CodecModel

ModelT = TypeVar("ModelT", bound="CodecModel")
_log = logging.getLogger(__name__)


class MissingModel(UserError):  # noqa: N818  # named for what it is
    """The model that coded a file is not at hand, so no file of that model opens."""


class EarlierSteps(Generic[ModelT]):
    """The codecs of a run's other checkpoints, loaded as files ask for them."""

    def __init__(self, workdir: pathlib.Path | None, kind: type[ModelT]):
        """Takes the run.

        Args:
          workdir: its workdir; None: there are no checkpoints.
          kind: class of the codecs.
        """
        self._workdir, self._kind = workdir, kind
        self._latest: ModelT | None = None  # the one that was found last; they may be large

    def find(self, header: Header, own: ModelT, name: str) -> ModelT:
        """The codec of the checkpoint that coded a file.

        Args:
          header: of the file.
          own: the codec that cannot decode it.
          name: of the file, for messages.

        Raises:
          MissingModel: it is not among those that are kept, or damaged.
        """
        if self._latest is not None and _made(self._latest, header):
            return self._latest
        kept = [] if self._workdir is None else kept_steps(self._workdir)
        origin, weights = header.origin, "auto"
        steps = kept[::-1]
        if origin is not None:
            weights = "ema" if origin.averaged else "raw"
            steps = [origin.step] if origin.step in kept else []
        for step in steps:
            assert self._workdir is not None
            try:
                found = self._kind.load(self._workdir, step=step, weights=weights)
            except UserError as error:
                raise MissingModel(f"{name} may need step {step} of {own.name}: {error}") from error
            if _made(found, header):
                _log.info("%s: decoded with the checkpoint of step %d", name, step)
                self._latest = found
                return found
        raise MissingModel(self._mismatch(header, own, name, kept))

    def _mismatch(self, header: Header, own: ModelT, name: str, kept: list[int]) -> str:
        origin, mine = header.origin, own.origin(header.mode)
        steps = ", ".join(map(str, kept))
        theirs, ours = header.fingerprint.hex(), own.fingerprint(header.mode).hex()
        if origin is None:
            keeps = f", and by none of the steps that {own.name} keeps ({steps})" if kept else ""
            return (
                f"{name} was coded by another model ({theirs}) than {own.name} ({ours}){keeps}: "
                "give that one with --model"
            )
        coded = f"{name} was coded by {origin} ({theirs})"
        if origin.step in kept:
            return (
                f"{coded}, and {self._workdir} is another run ({ours}): give the workdir or an "
                "export of the one that coded it with --model"
            )
        if kept:
            return (
                f"{coded}, and {self._workdir} keeps only steps {steps}: give an export of "
                f"step {origin.step} with --model, as encode --export makes it, or encode again"
            )
        return (
            f"{coded}, and {own.name} is {mine or 'another model'} ({ours}): give the workdir or "
            "an export of the one that coded it with --model"
        )


def _made(codec: CodecModel, header: Header) -> bool:
    """Whether a codec decodes a file."""
    return codec.fingerprint(header.mode) == header.fingerprint
