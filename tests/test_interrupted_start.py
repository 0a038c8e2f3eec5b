"""Ctrl-C while the program is still being imported: one message and exit code 130, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOADED_BY_SITE = {
    "os",
    "os.path",
    "posixpath",
    "genericpath",
    "stat",
    "_stat",
    "_collections_abc",
    "abc",
    "_abc",
}
INTERRUPTED = "Error: interrupted; nothing was finished\n"


def outcome(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("raising", ["raise KeyboardInterrupt", "exec('raise KeyboardInterrupt')"])
def test_an_interrupt_while_the_commands_are_imported_is_one_message(raising):
    # After one that went through `exec`, as in a named tuple, Python exits with the signal, not the code.
    code = f"""
        import builtins, sys
        from kdcompress.__main__ import main
        real = builtins.__import__
        def interrupted(name, *rest):
            if name == "kdcompress.commands.bench":
                {raising}
            return real(name, *rest)
        builtins.__import__ = interrupted
        sys.argv = ["kdcompress", "recipes"]
        main()
    """
    assert outcome(code) == (130, INTERRUPTED)


def test_the_package_imports_nothing_before_it_can_answer_an_interrupt():
    code = (
        "import sys; before = set(sys.modules); import kdcompress.__main__; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = {"kdcompress", "kdcompress.__main__", "__future__"}
    assert set(done.stdout.split()) - own <= LOADED_BY_SITE


def test_an_interrupt_while_a_library_is_imported_waits_for_the_imports_end(tmp_path):
    # PyTorch's own import ends the process, if a KeyboardInterrupt goes through it.
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        f"    os.kill(os.getpid(), signal.{signal.SIGINT.name})\n"
        "    time.sleep(0.3)\n"
        "except KeyboardInterrupt:\n"
        "    os.abort()\n"
        "open(os.path.join(os.path.dirname(__file__), 'whole'), 'w')\n"
    )
    code = f"""
        import sys, time
        from kdcompress import cli, listing
        sys.path.insert(0, {str(tmp_path)!r})
        def slowly():
            import slow
            time.sleep(60)
        listing.datasets = slowly
        cli.main(["datasets"])
    """
    assert outcome(code) == (130, INTERRUPTED)
    assert (tmp_path / "whole").exists()
