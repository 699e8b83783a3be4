"""Which code made something: versions, and the commit where the package lies in a git checkout."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from speechssl import __version__


def versions() -> dict[str, str]:
    """Versions of this package, torch and Python; `commit` too where there is one."""
    found = {
        "speechssl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return found | ({"commit": commit} if (commit := git_commit()) else {})


def git_commit(root: Path = Path(__file__).parents[2]) -> str:
    """The commit checked out at `root`, with `-dirty` where files differ; '' where there is none.

    An installed package must not report the repository that its environment happens to lie in,
    hence `root` has to be the checkout itself.
    """
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]  # the hash, never a tag
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout it does not trust
        return ""
    return done.stdout.strip()
