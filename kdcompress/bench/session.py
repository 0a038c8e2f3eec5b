"""A worker process as its driver sees it: ask, and get an answer in time or learn what went wrong."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

_WORKER = Path(__file__).with_name("worker.py")
_PACKAGE_ROOT = Path(__file__).parents[2]


class CellFailed(Exception):
    """A worker that could not do what it was asked; it has ended.

    Args:
        stage: The command it was given.
        kind: The class of the error, "Timeout" or "Crashed".
        message: One line.
    """

    def __init__(self, stage: str, kind: str, message: str) -> None:
        self.stage, self.kind, self.message = stage, kind, message
        super().__init__(f"{stage}: {kind}: {message}")


class Session:
    """One worker process, started at once and ended on leaving the `with` block.

    Args:
        threads: Of the runtime; fixed in the environment before anything is imported.
    """

    def __init__(self, threads: int) -> None:
        settings = json.dumps({"threads": threads, "parent": os.getpid()})
        path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process, in close()
        # -P: the worker's own folder stays off the path, where this package's files would shadow other
        # modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the worker process."""
        return self._process.pid

    def ask(self, command: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer.

        Args:
            command: As in worker.py.
            timeout_s: Seconds after which the worker is ended.
            arguments: The command's own.

        Raises:
            CellFailed: The worker said so, ended without an answer, or was too slow.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"cmd": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise CellFailed(command, "Timeout", f"no answer within {timeout_s:.0f} s; ended") from None
        except BrokenPipeError:
            line = ""
        if not line:
            raise CellFailed(command, "Crashed", self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            message = " ".join(str(answer["message"]).split())  # one line, whatever the runtime wrote
            raise CellFailed(command, answer["type"], message)
        return answer

    def close(self) -> None:
        """Ends the process, by force if need be."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None and not stream.closed:
                _close(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # end of file: the process is gone

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"the worker {how}" + (f"; its last words: {lines[-1]}" if lines else "")


def _close(stream: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # an unsent command of a process that is gone
        stream.close()
