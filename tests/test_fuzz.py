"""Damaged files through the training reader: each is read or a broken record, whatever it holds.

The long form is `benchmarks.fuzz_reader`, which reads thousands in processes of their own.
"""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import fuzz_reader

SEED = 15


@pytest.mark.parametrize("kind", [*fuzz_reader.PICTURES, *fuzz_reader.CLIPS])
def test_no_damage_escapes(kind, tmp_path):
    found = []
    for number in range(40):
        rng = np.random.default_rng([SEED, number, *kind.encode()])
        data = fuzz_reader.damaged(fuzz_reader.whole(kind), rng)
        one = fuzz_reader.read(kind, data, tmp_path, rng)
        assert one.outcome in ("read", "broken"), (number, one)
        assert one.outcome == "read" or one.reason, number
        found.append(one.outcome)
    assert "broken" in found
    whole = fuzz_reader.read(kind, fuzz_reader.whole(kind), tmp_path, np.random.default_rng(0))
    assert whole == ("read", "")


def test_the_command_counts_and_names_what_goes_wrong(tmp_path):
    command = [sys.executable, "-m", "benchmarks.fuzz_reader", "--kinds", "png", "flv"]
    command += ["--pictures", "6", "--clips", "6", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    for row in rows[2:]:
        count, read, broken, *rest = (int(value.strip(" |")) for value in row[1:])
        assert (count, read + broken, *rest) == (6, 6, 0, 0, 0)


def test_a_process_that_dies_is_counted_and_the_next_file_is_read():
    jobs = [("no such kind", 0), ("png", 0), ("png", 1)]
    found, _ = fuzz_reader.fuzz(jobs, 0, 1, 60)
    assert found[jobs[0]] == ("crashed", "exit status 1")
    assert {found[job].outcome for job in jobs[1:]} <= {"read", "broken"}
