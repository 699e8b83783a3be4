"""SIGTERM, SIGINT and SIGUSR1 ask for a checkpoint and a clean end; a second one ends at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Launchers repeat the signal a terminal has already sent; only later ones mean impatience.
ECHO_SEC = 1.0
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """Context in which signals only raise a flag, to be polled between updates."""

    def __init__(self) -> None:
        self.name = ""
        self._pid = os.getpid()
        self._heard_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in _HEARD}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader worker, which its parent ends
            return
        if self.name:
            if time.monotonic() - self._heard_at < ECHO_SEC:
                return
            os._exit(128 + number)
        self.name, self._heard_at = signal.Signals(number).name, time.monotonic()
        log.warning("%s: finishing this update, then saving (again: stop at once)", self.name)

    def __bool__(self) -> bool:
        return bool(self.name)

    def until_heard(self, items: Iterable[T]) -> Iterator[T]:
        """The items, ending early once a signal was heard, yet with the first one in any case.

        Ranks hear a signal at different moments, and one that has nothing to run could not keep
        the others company where a forward pass takes all of them (ZeRO-3).
        """
        for item in items:
            yield item
            if self.name:
                return
