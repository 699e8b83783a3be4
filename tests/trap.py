"""A pickle that would run code, for tests that nothing runs it."""

from __future__ import annotations

import os
from pathlib import Path


class Trap:
    """Pickled, it touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)
