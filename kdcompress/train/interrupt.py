"""Handles Ctrl-C and SIGTERM: the training finishes its step, saves a checkpoint and stops."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_SECONDS = 1.0
"""A second signal within this time is a repetition of the first: on Ctrl-C the terminal signals every
process, and `torchrun` signals its workers once more."""


class StopRequest:
    """Records that a signal asked the run to stop, and when."""

    def __init__(self) -> None:
        self.requested = False
        self.since = 0.0


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Yields a flag that the first SIGINT or SIGTERM sets; a later signal interrupts at once.

    Outside the main thread signals are left alone, since Python delivers them to the main thread only.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        if not stop.requested:
            stop.requested, stop.since = True, time.monotonic()
        elif time.monotonic() - stop.since > ECHO_SECONDS:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
