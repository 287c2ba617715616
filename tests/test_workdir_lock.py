"""One run at a time in a workdir. Oracle: locks of the operating system."""

import fcntl
import json
import os
import socket

import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.training.workdir_lock import FILE, held


@pytest.mark.smoke
def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    workdir = tmp_path / "run"
    with held(workdir):
        said = f"process {os.getpid()} is training in .*run already"
        with pytest.raises(UserError, match=said), held(workdir):
            pass
        # The refused one has not freed it, and its note says whose it is.
        owner = {"host": socket.gethostname(), "process": os.getpid()}
        assert json.loads((workdir / FILE).read_text()) == owner
        with pytest.raises(UserError), held(workdir):
            pass
    with held(workdir):
        pass


def test_a_lock_of_another_machine_is_warned_of(tmp_path, caplog):
    """It may be left of a machine that is gone, and the run must be able to go on elsewhere."""
    with (tmp_path / FILE).open("w") as file:
        file.write(json.dumps({"host": "elsewhere", "process": 7}))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with held(tmp_path):
            pass
    assert "process 7 on elsewhere seems to be training in" in caplog.text


def test_a_note_that_is_damaged_still_refuses(tmp_path):
    with (tmp_path / FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="process unknown is training"), held(tmp_path):
            pass


def test_a_workdir_that_cannot_be_made_is_not_the_locks_to_tell(tmp_path):
    (tmp_path / "file").write_text("")
    with held(tmp_path / "file" / "run"):
        pass
