"""Keep freed memory in the process: a training step allocates the same blocks again at once."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large blocks back to the system; True where that was possible.

    Otherwise every large tensor of a CPU training step is mapped, zeroed page by page and
    unmapped again. Costs resident memory, changes no result, and does nothing off Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
