"""Models on the Hugging Face hub: an address ``hf://OWNER/NAME`` stands for the folder it names.

Only the files of an export are fetched: ``config.json`` first, and then the weights that it lists,
each checked against its checksum. They lie in the cache of ``huggingface_hub`` and are used again.
Nothing is fetched but for an address that the user wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from bsq_jax.core.errors import UserError
from bsq_jax.core.hub_address import HubAddress, hub_address
from bsq_jax.core.paths import local_path
from bsq_jax.training.export import CONFIG_FILE, describe_export, weights_file

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
TOKENIZER_FOLDER = "tokenizer"  # below the workdir or export of what is trained on its tokens
PACKAGE = "huggingface_hub>=1"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# By server, repository and revision: the commit from which a model was taken first.
_taken: dict[tuple[str, str, str], str] = {}
_log = logging.getLogger(__name__)


def model_folder(path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of a model that a user names: of an address of the hub, where it was fetched to.

    A process stays with the commit that it took first, so that a config and its weights belong
    together.

    Args:
      path: a workdir, an export, or ``hf://OWNER/NAME[@REVISION][/FOLDER]``.

    Raises:
      UserError: the address is none, ``huggingface_hub`` is not installed, the hub cannot be
        reached and the model is not in the cache, or what lies there is no whole export.
    """
    address = hub_address(path)
    if address is None:
        return local_path(path)
    hub = library(str(address))
    with hub_errors(str(address)):
        key = hub.constants.ENDPOINT, address.repository, address.revision
        commit = _taken.get(key) or _commit(address)
        folder = _export(address, commit, address.folder)
        _taken[key] = commit
        return folder


def library(asked: str) -> Any:
    """The package ``huggingface_hub``, which is no requirement.

    Args:
      asked: what needs it, for the message.

    Raises:
      UserError: it is not installed, or too old.
    """
    try:
        import huggingface_hub

        version = huggingface_hub.__version__
        if int(version.partition(".")[0]) < 1:
            raise UserError(
                f"{asked}: the Hugging Face hub needs huggingface_hub 1 or newer ({version} is "
                f"installed): pip install -U '{PACKAGE}'"
            )
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            f"{asked}: the Hugging Face hub needs a package: pip install '{PACKAGE}'"
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def hub_errors(asked: str) -> Iterator[None]:
    """Errors of the hub and of the way to it become a line that says what to do.

    Args:
      asked: what was asked for: an address.

    Raises:
      UserError: in place of these errors.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{asked}: the hub has no such names ({reason}): write OWNER/NAME"
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{asked}: its owner gives access on request: ask for it on the page of the "
            f"repository, and {LOG_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{asked} does not exist, or you may not read it: check the name, or {LOG_IN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{asked}: the repository has no such revision: give a branch, a tag or a commit of it"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, errors.FileMetadataError):
            reason = "what answers there is no hub: check HF_ENDPOINT and the network"
            raise UserError(f"{asked}: {reason}") from error
        raise UserError(f"{asked}: {_unreachable()}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise UserError(f"{asked}: the hub does not know your token: {LOG_IN}") from error
        if status == 403:
            raise UserError(
                f"{asked}: your token does not allow this: take one with the right to it, and "
                f"{LOG_IN}"
            ) from error
        raise UserError(f"{asked}: the hub answers {status}: try again later") from error
    except (OSError, errors.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(
            error.__cause__, OSError | errors.HTTPError
        ):
            raise  # an upload's has the error of the transfer as its cause
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{asked}: the transfer failed ({reason}): try again") from error


def _commit(address: HubAddress) -> str:
    """The commit that an address means now; where the hub cannot be asked, that of the cache."""
    hub = library(str(address))
    revision = address.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    if not hub.constants.HF_HUB_OFFLINE:
        try:
            hub.HfApi().model_info(address.repository, revision=revision)
            config = _fetch(address, revision, address.folder, CONFIG_FILE)
            return _commit_of(config, address)
        except hub.errors.HfHubHTTPError:
            raise
        except (OSError, hub.errors.HTTPError) as error:
            commit = _cached_commit(address, revision)
            if commit is None:
                raise UserError(f"{address}: {_unreachable()}") from error
            _log.warning(
                "%s: the hub cannot be reached: commit %s is taken, which was fetched before",
                address,
                commit,
            )
            return commit
    commit = _cached_commit(address, revision)
    if commit is None:
        raise UserError(f"{address}: {_unreachable()}")
    return commit


def _unreachable() -> str:
    """Why nothing is fetched."""
    import huggingface_hub.constants

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it was not fetched whole before: unset it"
    return "the hub cannot be reached, and it was not fetched whole before: check the network"


def _cached_commit(address: HubAddress, revision: str) -> str | None:
    """The commit of a branch or a tag when it was fetched last."""
    name = "/".join(filter(None, (address.folder, CONFIG_FILE)))
    found = library(str(address)).try_to_load_from_cache(address.repository, name, None, revision)
    return _commit_of(pathlib.Path(found), address) if isinstance(found, str) else None


def _commit_of(config: pathlib.Path, address: HubAddress) -> str:
    """The commit whose ``config.json`` this is in the cache, ``.../COMMIT/FOLDER/config.json``."""
    return config.parents[len(pathlib.PurePosixPath(address.folder).parts)].name


def _export(address: HubAddress, commit: str, inside: str) -> pathlib.Path:
    """Fetches what is missing of an export and checks it.

    Args:
      address: of the model, for messages.
      commit: of the repository.
      inside: the export's folder in the repository.
    """
    folder = _fetch(address, commit, inside, CONFIG_FILE).parent
    try:
        described = describe_export(folder)
    except UserError as error:
        raise UserError(f"{address} holds no model that can be loaded: {error}") from error
    for name, entry in described["weights"].items():
        file = _fetch(address, commit, inside, weights_file(name))
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise UserError(
                f"{address}: {weights_file(name)} is damaged or not the one that {CONFIG_FILE} "
                f"belongs to: delete {file.resolve()} and try again, or tell its owner"
            )
    if described["config"].get("task", "tokenizer") != "tokenizer":
        _export(address, commit, f"{inside}/{TOKENIZER_FOLDER}" if inside else TOKENIZER_FOLDER)
    return folder


def _fetch(address: HubAddress, revision: str, inside: str, name: str) -> pathlib.Path:
    """A file of a revision, from the cache if it is there."""
    hub = library(str(address))
    try:
        path = hub.hf_hub_download(
            address.repository, name, subfolder=inside or None, revision=revision
        )
    except hub.errors.RemoteEntryNotFoundError as error:
        lost = "/".join(filter(None, (inside, name)))
        hint = "it holds no export of bsq_jax" if name == CONFIG_FILE else "tell its owner"
        raise UserError(f"{address}: there is no {lost} in it: {hint}") from error
    return pathlib.Path(path)
