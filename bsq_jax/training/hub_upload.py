"""Publishing an export on the Hugging Face hub: which files, and the upload in one commit."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

from bsq_jax.core.errors import UserError
from bsq_jax.core.hub_address import HubAddress, is_repository
from bsq_jax.training.export import CONFIG_FILE, describe_export, load_export, weights_file
from bsq_jax.training.hub import LOG_IN, TOKENIZER_FOLDER, hub_errors, library
from bsq_jax.training.model_card import ADDRESS, CARD, make_card, with_license
from bsq_jax.training.public_config import public_addresses, without_paths


class Upload(NamedTuple):
    """What is published.

    Attributes:
      files: content, or the file that has it, by path in the repository.
      changes: what was taken out of configs, a line each.
      addresses: of models on the hub that stay in configs, as ``key: address``.
    """

    files: dict[str, bytes | pathlib.Path]
    changes: list[str]
    addresses: list[str]

    @property
    def lines(self) -> list[str]:
        """The files with their sizes, for people to read."""
        return [f"{path} ({_size(content):,d} bytes)" for path, content in self.files.items()]


def prepare(folder: pathlib.Path, repository: str, license_id: str | None = None) -> Upload:
    """Checks an export and collects its files; nothing is sent.

    Args:
      folder: the export. Of its ``README.md`` the words stay, else a card is made.
      repository: ``OWNER/NAME``, for the card.
      license_id: for the card; None: what it says stays.

    Raises:
      UserError: a file is missing or damaged, or the card is no text in UTF-8.
    """
    files, changes = _files(folder, "")
    card = folder / CARD
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else make_card(folder)
    except UnicodeDecodeError as error:
        raise UserError(f"{card} is no text in UTF-8: save it so, or delete it") from error
    text = with_license(text, license_id).replace(ADDRESS, str(HubAddress(repository)))
    addresses = [
        line
        for path, content in files.items()
        if isinstance(content, bytes)
        for line in public_addresses(json.loads(content))
    ]
    files = {CARD: text.encode(), **files}
    return Upload(files, list(dict.fromkeys(changes)), list(dict.fromkeys(addresses)))


def check_name(repository: str) -> None:
    """Refuses a name that no repository can have.

    Raises:
      UserError: it is not ``OWNER/NAME`` as the hub allows it.
    """
    if not is_repository(repository):
        raise UserError(
            f"{repository} is no name of a repository: write OWNER/NAME, in letters, digits, "
            "'-', '_' and '.'; NAME has 96 characters at most and does not end in .git"
        )


def check_account(repository: str) -> None:
    """Refuses what cannot be published, before work is done for it.

    Raises:
      UserError: the name is none, the package is missing, or nobody is logged in.
    """
    check_name(repository)
    hub = library(repository)
    if hub.get_token() is None:
        raise UserError(f"{repository}: to publish {LOG_IN}")
    with hub_errors(repository):
        hub.HfApi().whoami()


def publish(upload: Upload, repository: str, *, private: bool = False, revision: str = "") -> str:
    """Sends the files as one commit; the repository and the branch are made if need be.

    Args:
      upload: of `prepare`.
      repository: ``OWNER/NAME``.
      private: whether only its members may read it.
      revision: a branch; empty: the main branch.

    Returns:
      The address of the commit on the hub.

    Raises:
      UserError: the hub refuses it or cannot be reached, or `private` is asked for and the
        repository is there and public.
    """
    hub = library(repository)
    api = hub.HfApi()
    with hub_errors(repository):
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise UserError(
                f"{repository} exists and is public (--private): choose another name, or make it "
                "private on its page"
            )
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        sent = [hub.CommitOperationAdd(path, content) for path, content in upload.files.items()]
        found: Any = api.create_commit(
            repository, sent, commit_message="Model of bsq_jax", revision=revision or None
        )
        return str(found.commit_url)


def _files(folder: pathlib.Path, prefix: str) -> tuple[dict[str, bytes | pathlib.Path], list[str]]:
    """The files of an export and of the tokenizer in it, and what was changed."""
    load_export(folder)  # checks the weights
    described, changes = without_paths(describe_export(folder))
    text = json.dumps(described, indent=2) + "\n"
    files: dict[str, bytes | pathlib.Path] = {f"{prefix}{CONFIG_FILE}": text.encode()}
    for name in described["weights"]:
        files[f"{prefix}{weights_file(name)}"] = folder / weights_file(name)
    if described["config"].get("task", "tokenizer") != "tokenizer":
        more = _files(folder / TOKENIZER_FOLDER, f"{prefix}{TOKENIZER_FOLDER}/")
        files, changes = {**files, **more[0]}, changes + more[1]
    return files, changes


def _size(content: bytes | pathlib.Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
