"""A far end that answers anything: a process in place of ssh that plays a prepared transcript."""

from __future__ import annotations

import copy
import json
import sys

from kdcompress.bench.device import machine

SCRIPT = """
import sys
out, script = sys.stdout.buffer, open(sys.argv[1], "rb").read()
out.write(b"kdcompress: send\\n"); out.flush()
sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
endless = script.endswith(b"ENDLESS")
try:
    out.write(script.removesuffix(b"ENDLESS")); out.flush()
    while endless:
        out.write(b"x" * 65536)
    sys.stdin.buffer.read()
except BrokenPipeError:
    pass
"""


def valid(cells=2, rounds=1):
    """Returns the messages of an agent that measured one file and its control."""
    facts = {**machine.facts(), "runtimes": {"onnxruntime": "1.2"}}
    loaded = {"import_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0, "base_mb": 50.0, "shape": [1, 8, 8]}
    loaded |= {"images": "noise", "outputs": [1, 10], "provider": "CPUExecutionProvider", "version": "1.2"}
    block = {"samples_ns": [1000, 1100, 900], "wall_s": 0.1, "cpu_s": 0.1, "peak_mb": 90.0}
    block |= {"involuntary_switches": 0, "steal_s": 0.0}
    cell = {"loaded": loaded, "parity": None, "blocks": [block] * rounds}
    preflight = {"facts": facts, "warnings": [], "free": 10**12, "problems": []}
    return copy.deepcopy(
        [
            {"hello": "3.12"},
            {"preflight": preflight},
            {"ended": 0, "words": ""},
            {"tell": [1, 2, "loading model"]},
            {"result": {"raw": {"cells": [cell] * cells, "failures": []}, "after": facts}},
            {"ended": 0, "words": ""},
            {"gone": True},
        ]
    )


def transcript(messages):
    """Returns the bytes that the process writes."""
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def command(folder, script):
    """Returns the command that plays a transcript."""
    (folder / "far.py").write_text(SCRIPT)
    (folder / "far.txt").write_bytes(script)
    return [sys.executable, "-S", "-E", str(folder / "far.py"), str(folder / "far.txt")]
