"""Publishes a model on the Hugging Face hub, with a model card.

Examples:
  bsq-jax push my_codec OWNER/NAME --license apache-2.0
  bsq-jax push runs/prior OWNER/NAME --private
  bsq-jax push runs/prior OWNER/NAME --dry-run

A workdir is exported first. Before anything is sent, the files are listed, and what is left out of
their configs: of paths only the last name is published; addresses hf://... of other models stay and
are listed. The model is then hf://OWNER/NAME. Needs `pip install 'huggingface_hub>=1'` and a login
(`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

from bsq_jax.cli.command import Command
from bsq_jax.cli.outputs import say
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``push``."""
    parser.add_argument("input", help="export or workdir of a tokenizer, a prior or a masked LM")
    parser.add_argument("repository", metavar="OWNER/NAME", help="on the hub; made if need be")
    parser.add_argument("--private", action="store_true", help="only its members may read it")
    parser.add_argument("--revision", metavar="BRANCH", default="", help="else the main branch")
    parser.add_argument("--license", metavar="ID", help="for the card, such as apache-2.0")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent")


def run(flags: argparse.Namespace) -> int:
    """Publishes."""
    source = local_path(flags.input)
    if not source.is_dir():
        raise UserError(f"{source} does not exist or is not a folder: give a workdir or export")
    from bsq_jax.training.export import is_export
    from bsq_jax.training.hub_upload import check_account, check_name
    from bsq_jax.training.model_card import with_license

    check_name(flags.repository)
    with_license("", flags.license)  # before work is done
    if not flags.dry_run:
        check_account(flags.repository)
    if is_export(source):
        return _push(source, flags)
    from bsq_jax.cli.export import write_model

    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "export"
        say(f"{source} is a workdir: {write_model(source, target, license_id=flags.license)}")
        return _push(target, flags)


def _push(folder: pathlib.Path, flags: argparse.Namespace) -> int:
    from bsq_jax.training.hub_upload import prepare, publish

    upload = prepare(folder, flags.repository, flags.license)
    branch = f", branch {flags.revision}" if flags.revision else ""
    seen = "private if it is new" if flags.private else "as visible as it is, if it is there"
    say(f"to hf://{flags.repository}{branch}, {seen}: {', '.join(upload.lines)}")
    for change in upload.changes:
        say(f"not published: {change}")
    for address in upload.addresses:
        say(f"published, an address of another model: {address}")
    if flags.dry_run:
        say("nothing was sent (--dry-run)")
        return 0
    say(publish(upload, flags.repository, private=flags.private, revision=flags.revision))
    return 0


COMMAND = Command(
    "publish a model on the Hugging Face hub",
    __doc__,
    add_arguments,
    run,
    interrupted="the hub takes a commit whole or not at all: see the repository's page",
)
