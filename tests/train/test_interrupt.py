from __future__ import annotations

import os
import signal
import threading

import pytest

from kdcompress.train import interrupt
from kdcompress.train.interrupt import deferred_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with deferred_stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_second_signal_interrupts_at_once(monkeypatch):
    monkeypatch.setattr(interrupt, "ECHO_SECONDS", -1.0)
    with deferred_stop():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_echo_of_a_signal_is_the_same_request():
    """On Ctrl-C the terminal signals every process, and torchrun passes it on once more."""
    with deferred_stop() as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.requested


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def elsewhere():
        with deferred_stop() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
