"""A far end that answers anything: a process in place of ssh that plays a prepared transcript."""

from __future__ import annotations

import copy
import json
import sys

from hostile import damage
from kdcompress.bench.device import machine

SCRIPT = """
import os, sys, threading, time
out, script = sys.stdout.buffer, open(sys.argv[1], "rb").read()
modes = [b" ENDLESS", b" TALKING", b" LOUDLY!", b" DEAFLY!", b"  STILL!", b" ENDING!"]
modes += [b" SINGLES", b" LONGEST", b" EXIT255"]
mode = script[-8:] if script[-8:] in modes else b""
script = script[: len(script) - len(mode)]
if mode == b" EXIT255":
    os.write(2, script)
    sys.exit(255)
out.write(b"kdcompress: send\\n"); out.flush()
sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
if mode in (b" TALKING", b" LOUDLY!"):
    threading.Thread(target=sys.stdin.buffer.read, daemon=True).start()
try:
    if mode == b" SINGLES":
        for number in range(len(script)):
            os.write(1, script[number : number + 1])
    else:
        out.write(script); out.flush()
    if mode == b" ENDING!":
        os.write(2, b"\\x1b[2Jgone\\x07\\xe2\\x80\\xae \\xff\\n")
        os._exit(3)
    if mode == b" DEAFLY!":
        os.close(0)
    for _ in range(1024 if mode == b" LONGEST" else 0):
        out.write(b"x" * 65536)
    out.flush()
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
"""The last eight bytes of the transcript say what the process does besides."""

RARE_MODES = (b" ENDLESS", b" TALKING", b" LOUDLY!", b" DEAFLY!", b"  STILL!", b" LONGEST")
"""Modes that take seconds of processor or waiting time."""
REFUSALS = (
    b"", b"\x1b]0;title\x07\x1b[2J\n", b"Permission denied (publickey).\n", b"kdcompress: Python 2.7\n",
    b"Host key verification failed.\n", b"\xff\xfe\x80\n", b"x" * 70_000, b"\n" * 5000,
    "\u202e\u2028\u0085\n".encode(), b"Bad configuration option: \x1b[31m\n",
    b"REMOTE HOST IDENTIFICATION HAS CHANGED!\n",
)  # fmt: skip
"""Error messages of an ssh that cannot log in."""


def damaged(rng):
    """Returns a transcript with damaged messages, or bytes, or in a strange order or mode."""
    messages = valid()
    kind = rng.choices(["tree", "bytes", "order", "mode", "refusal"], [45, 15, 15, 20, 5])[0]
    if kind == "tree":
        number = rng.randrange(len(messages))
        messages[number] = damage.of_tree(rng, messages[number])
        return transcript(messages)
    if kind == "bytes":
        return damage.of_bytes(rng, transcript(messages))
    if kind == "order":
        return transcript(_reordered(rng, messages))
    if kind == "refusal":
        return rng.choice(REFUSALS) + b" EXIT255"
    script = transcript(messages)
    script = script[: rng.choice([len(script), rng.randrange(len(script))])]  # often in mid-line
    if rng.random() < 0.2:
        return script + rng.choice(RARE_MODES)
    if rng.random() < 0.3:
        script = damage.of_bytes(rng, script)
    return script + rng.choice([b" ENDING!", b" SINGLES"])


def _reordered(rng, messages):
    """Repeats, swaps or leaves out messages, or puts foreign ones among them."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        kind = rng.choice(["repeat", "swap", "leave out", "foreign", "many"])
        at = rng.randrange(len(messages))
        if kind == "repeat":
            messages.insert(rng.randrange(len(messages) + 1), copy.deepcopy(messages[at]))
        elif kind == "swap":
            other = rng.randrange(len(messages))
            messages[at], messages[other] = messages[other], messages[at]
        elif kind == "leave out" and len(messages) > 1:
            del messages[at]
        elif kind == "many":
            messages[at:at] = [messages[at]] * 200
        else:
            messages.insert(at, rng.choice(FOREIGN))
    return messages


FOREIGN = (
    {"beat": 1}, {"received": "a.onnx"}, {"error": "full"}, {"error": "limit"}, {"error": "silence"}, {},
    {"ended": 2, "words": "no"}, {"ended": 5, "words": "\x1b[2J"}, {"ended": -9, "words": ""}, {"ended": 1},
    {"error": "\u2028", "message": "\x1b"}, {"hello": None}, {"gone": False}, {"tell": None},
    {"result": None},
)  # fmt: skip
"""Messages that the agent may send, at another place."""


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
