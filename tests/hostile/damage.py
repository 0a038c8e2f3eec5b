"""Seeded damage: of bytes, of JSON trees and of text; the same seed gives the same damage."""

from __future__ import annotations

import copy
import json

NASTY_TEXT = [
    "", " ", "\0", "\x1b[2J", "\u2028", "..", "../../x", "/etc/passwd", "a" * 70_000, "-", "nan", "é" * 300,
    "{{ 7*7 }}", "<script>", "%s%n", "\\", "1e999", "python:os:system", "cifar/resnet8", "None",
]  # fmt: skip
NASTY = [
    None, True, False, 0, 1, -1, 2, 255, 10**6,
    4096, 16384, 65535, 2**31, 2**53, 2**63 - 1, -(2**63), 10**30, 0.5, -0.5, 1e-300,
    1e300, -1e300, 1e15, [], {}, [[]], [None], [1, 2], [1, 2, 3], {"a": 1}, {"": None}, *NASTY_TEXT,
]  # fmt: skip


def of_bytes(rng, content):
    """Truncates, flips, cuts out, doubles, overwrites, or adds to bytes."""
    content = bytearray(content)
    kind = rng.choice(["truncate", "flip", "flip", "cut", "double", "noise", "append", "zero"])
    at = rng.randrange(len(content) + 1) if content else 0
    length = rng.choice([1, 2, 8, 100, 5000])
    if kind == "truncate":
        return bytes(content[:at])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 3, 30])):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at : at + length]
    elif kind == "double":
        content[at:at] = content[at : at + length]
    elif kind == "noise":
        content[at : at + length] = rng.randbytes(length)
    elif kind == "append":
        content += rng.choice([b"\xff", b"\0", b"\n", b"{", rng.randbytes(length)])
    else:
        content[at : at + length] = bytes(length)
    return bytes(content)


def of_tree(rng, document):
    """Replaces, removes, renames, doubles or adds values of a JSON document, one to three of them."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(document))
        if not places:
            return rng.choice(NASTY)
        holder, key = rng.choice(places)
        kind = rng.choice(["replace", "replace", "replace", "remove", "rename", "double", "move", "add"])
        if kind == "replace":
            holder[key] = copy.deepcopy(rng.choice(NASTY))
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[rng.choice(NASTY_TEXT)] = holder.pop(key)
        elif kind == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == "move":
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place]) if _has(other, place) else None
        elif isinstance(holder, dict):
            holder[rng.choice(NASTY_TEXT)] = copy.deepcopy(rng.choice(NASTY))
        else:
            holder.append(copy.deepcopy(rng.choice(NASTY)))
    return document


def of_json(rng, content):
    """Damages a JSON file as a tree, or as bytes."""
    if rng.random() < 0.25:
        return of_bytes(rng, content)
    if rng.random() < 0.03:
        return rng.choice([b"[" * 100_000, b"NaN", b'{"a": 1e999}', b"9" * 5000, b"", b'["\\ud800"]'])
    try:
        document = json.loads(content)
    except ValueError:
        return of_bytes(rng, content)  # not JSON, such as an entry of plain text
    return json.dumps(of_tree(rng, document)).encode()


def of_lines(rng, content):
    """Damages one line of a JSON-lines file, or its bytes."""
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = of_json(rng, lines[number])
    return b"\n".join(lines) + rng.choice([b"\n", b"\n", b"", b"\xff"])


def _has(holder, key):
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


def _places(value):
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
