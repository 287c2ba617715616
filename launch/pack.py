"""Packs the repository for other machines: ``python launch/pack.py ARCHIVE.tar.gz``.

In a git checkout the archive contains the tracked files, and new ones that git does not ignore.
Without git or a checkout it contains the folders of the repository. Needs Python 3.8 or newer and
no packages, because it runs before there is an environment.
"""

import pathlib
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("bsq_jax", "configs", "launch", "tests", "benchmarks", "docs")


def files():
    """Paths of the files, relative to the root."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
        names = [pathlib.Path(name) for name in found.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        below = [path for part in PARTS for path in (ROOT / part).rglob("*")]
        names = [path.relative_to(ROOT) for path in [*ROOT.glob("*"), *below]]
        names = [name for name in names if "__pycache__" not in name.parts]
    # git lists files that were deleted since the last commit, too.
    return sorted(name for name in names if (ROOT / name).is_file())


def main():
    """Writes the archive named on the command line."""
    with tarfile.open(sys.argv[1], "w:gz") as archive:
        for name in files():
            archive.add(ROOT / name, name.as_posix(), recursive=False)


if __name__ == "__main__":
    main()
