"""Runtimes whose calls take a scripted time on a clock of their own, so that statistics come out exact."""

from __future__ import annotations

import os
import sys
import time


class Scripted:
    """The artefact's file holds the script.

    `calls 2 2 2 8` are the durations in ms, in turn; `hang 4` hangs at that call and `die 4` dies at it;
    `shifted 0.5` adds to the outputs; `forks` leaves a copy of the process behind that never ends;
    `raise` and `die` fail while loading.
    """

    def __init__(self):
        self._now_ns = 0
        self._calls = 0

    def clock_ns(self):
        return self._now_ns

    def load(self, path, threads, batch, shape):
        with open(path) as file:
            kind, *words = file.read().split()
        if kind == "raise":
            raise ValueError("a graph\nof two lines")
        if kind == "die" and not words:
            sys.stderr.write("out of luck\n")
            sys.stderr.flush()
            os._exit(7)
        if kind == "forks" and os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        self._hangs_at = int(words[0]) if kind == "hang" else None
        self._dies_at = int(words[0]) if kind == "die" else None
        self._shift = float(words[0]) if kind == "shifted" else 0.0
        self._durations_ms = [float(word) for word in words] if kind == "calls" else [1.0]
        self._now_ns += 5_000_000
        self._threads = threads
        sys.stdout.write("libraries write on stdout\n")
        return list(shape or (1, 2, 2))

    def run(self, images):
        if self._calls == self._hangs_at:
            time.sleep(600)
        if self._calls == self._dies_at:
            os._exit(7)
        self._now_ns += int(1e6 * self._durations_ms[self._calls % len(self._durations_ms)])
        self._calls += 1
        return images.reshape(len(images), -1)[:, :2] + self._shift

    def info(self):
        return {"provider": f"scripted-{self._threads}-{os.environ['OMP_NUM_THREADS']}", "version": "1"}
