"""The commands in README and docs: where they stand, and their words."""

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (
    *("README.md", "CONTRIBUTING.md"),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
)
HEADS = ("python -m ", "bsq-jax ", "bash ")
"""What code within a sentence begins with if it is a command."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      place: page and line, ``docs/data.md:12``.
      words: as the shell would split it; without comments.
    """

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of Python code.

    Attributes:
      place: page and line.
      code: its lines.
    """

    place: str
    code: str


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """The number of the first line and the text of each block of code in that language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(2)].count("\n") + 1, match[2]) for match in found]


def commands(page: str) -> list[Command]:
    """Those of the blocks of a page, then those within its sentences that have arguments."""
    found = []
    for start, text in blocks(page, "bash"):
        number = start
        for line in re.sub(r"\\\n", "\\\\\0", text).split("\n"):
            joined = line.replace("\\\0", " ")
            words = shlex.split(joined, comments=True)
            for part in _split(words, "&&"):
                found.append(Command(f"{page}:{number}", tuple(part)))
            number += 1 + line.count("\0")
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(
        r"^( *)```.*?^ *```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S
    )
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        code = " ".join(match[1].split())
        if code.startswith(HEADS) and len(code.split()) > 2 + code.startswith("python -m bsq_jax "):
            number = prose[: match.start()].count("\n") + 1
            found.append(Command(f"{page}:{number}", tuple(shlex.split(code))))
    return found


def _split(words: list[str], by: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == by:
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]
