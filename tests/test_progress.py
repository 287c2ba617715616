"""Progress of long work. Oracle: a clock set by hand."""

import io
import sys

import pytest

from bsq_jax.core import progress as module
from bsq_jax.core.progress import labelled, progress

pytestmark = pytest.mark.smoke


class Clock:
    """Stands for the ``time`` module; moves only when told to."""

    now = 1000.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def work(clock, seconds, count=100, total=200, **options):
    """Elements of two, each of which takes some time once it is handed out."""
    with progress(total, "pictures", **options) as advance:
        for _ in advance(range(count), lambda _: 2):
            clock.now += seconds


def test_lines_come_every_ten_seconds_and_say_what_is_left(clock, capsys):
    with labelled("evaluating, raw weights"):
        work(clock, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluating, raw weights: 20 of 200 pictures, 1m30s left"
    assert lines[-1] == "evaluating, raw weights: 180 of 200 pictures, 10s left"
    assert len(lines) == 9  # none at the end, which says itself what was made


def test_long_work_says_less_often(clock, capsys):
    work(clock, 10.0, count=1000, total=20_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2 of 20,000 pictures, 1d03h left"
    # Every 10 seconds for 100 seconds, then whenever another tenth has passed.
    assert 40 < len(lines) < 65


def test_short_work_and_quiet_work_say_nothing(clock, capsys):
    work(clock, 0.09)
    work(clock, 1.0, quiet=True)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with labelled("evaluating"), progress(200, "pictures") as advance:
        next(advance([1], lambda _: 2))
    assert "evaluating:   0%|" in terminal.getvalue()
    assert "0/200" in terminal.getvalue()
    work(clock, 1.0, quiet=True)
    assert "100/200" not in terminal.getvalue()


def test_what_is_used_is_counted_and_a_failure_passes(clock, capsys):
    def fail():
        with progress(4, "files") as advance:
            for element in advance([1, 2], lambda _: 1):
                clock.now += 20
                if element == 2:
                    raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert capsys.readouterr().err == "1 of 4 files, 1m00s left\n"
