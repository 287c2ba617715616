"""Commands that stand in for gcloud and the like: they write down what they are asked."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
_PROGRAM = """\
#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
text = "" if sys.stdin is None or sys.stdin.isatty() or name != "kubectl" else sys.stdin.read()
with (folder / "asked.jsonl").open("a") as file:
    file.write(json.dumps([name, *sys.argv[1:], *([text] if text else [])]) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for number, (words, said, status) in enumerate(answers):
    if all(word in " ".join([name, *sys.argv[1:]]) for word in words):
        del answers[number]
        (folder / "answers.json").write_text(json.dumps(answers))
        print(said, file=sys.stderr if status else sys.stdout)
        sys.exit(status)
"""


class StandIns:
    """A folder of commands that is first on the path of the scripts run here.

    Args:
      folder: an empty one.
      names: of the commands.
    """

    def __init__(self, folder, *names):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in names:
            program = folder / "bin" / name
            program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
            program.chmod(0o755)
        self.answer()

    def answer(self, *answers):
        """Sets the answers ``(words that the question has, what is said, status)``.

        Each is given once, the first that fits; without one a command says nothing and succeeds.
        """
        (self.folder / "answers.json").write_text(json.dumps(answers))

    @property
    def asked(self):
        """The words of each command that was run, oldest first."""
        file = self.folder / "asked.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def run(self, script, *words, root=ROOT, **environment):
        """Runs a script of the folder ``launch``; ``(status, standard output, standard error)``."""
        names = ("PATH", "HOME", "VIRTUAL_ENV", "TMPDIR", "LANG")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        kept["PATH"] = f"{self.folder / 'bin'}:{kept['PATH']}"
        kept.setdefault("VIRTUAL_ENV", sys.prefix)
        done = subprocess.run(
            ["bash", str(root / "launch" / script), *map(str, words)],
            **{"env": {**kept, **environment}, "cwd": self.folder, "stdin": subprocess.DEVNULL},
            **{"capture_output": True, "text": True, "timeout": 60},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def takes_ctrl_c():
    """What is started inside does not ignore Ctrl-C, though these tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
