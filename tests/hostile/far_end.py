"""A far end that answers anything: a process in place of ssh that plays a prepared transcript."""

from __future__ import annotations

import copy
import json
import sys

from kdcompress.bench.device import machine

SCRIPT = """
import os, sys, threading, time
out, script = sys.stdout.buffer, open(sys.argv[1], "rb").read()
out.write(b"kdcompress: send\\n"); out.flush()
sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
modes = b" ENDLESS", b" TALKING", b" LOUDLY!", b" DEAFLY!", b"  STILL!"
mode = script[-8:] if script[-8:] in modes else b""
if mode in (b" TALKING", b" LOUDLY!"):
    threading.Thread(target=sys.stdin.buffer.read, daemon=True).start()
try:
    out.write(script[: len(script) - len(mode)]); out.flush()
    if mode == b" DEAFLY!":
        os.close(0)
    while mode == b" ENDLESS":
        out.write(b"x" * 65536)
    while mode in (b" TALKING", b" DEAFLY!"):
        out.write(b'{"tell": [1, 2, "timing"]}\\n'); out.flush()
    if mode == b"  STILL!":
        time.sleep(600)
    for _ in range(4096 if mode == b" LOUDLY!" else 0):
        os.write(2, b"y" * 65536)
    if mode != b" LOUDLY!":
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
