"""Damaged graphs of OpenVINO and their weights."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from hostile import damage, forked
from kdcompress.atomic import sha256_of
from kdcompress.cli import main
from kdcompress.deploy.formats import openvino
from kdcompress.deploy.formats import safetensors as plain
from kdcompress.deploy.load import load
from kdcompress.tools import bench as timing

FINISHED = Path(__file__).parent.parent / "fixtures" / "e33f4e2" / "finished"
READERS = ("facts", "facts", "facts", "load", "load", "evaluate")
NUMBERS = ["", "-1", "0", "1", "7", "4294967296", str(2**63 - 1), str(10**30), "1e9", "x", "1,2,3", "\u0660"]
LAUGHS = b"""<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">%s]><net>&%s;</net>""" % (
    b"".join(b'<!ENTITY %c "%s">' % (98 + n, (b"&%c;" % (97 + n)) * 10) for n in range(20)),
    b"u",
)


@functools.cache
def _valid_files():
    """Converts the student of the finished run in a process of its own, since OpenVINO starts threads."""
    openvino._library()
    folder = Path(tempfile.mkdtemp(prefix="ir-"))
    pid = os.fork()
    if pid == 0:
        try:
            network, config = plain.read(FINISHED / "student.safetensors")
            openvino.write(network, config.spec, folder / "student.xml", metadata={})
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    files = {path.suffix: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return files[".xml"], files[".bin"]


def valid_files(folder):
    """Writes a valid graph and its weights; returns the path of the graph."""
    graph, weights = _valid_files()
    (folder / "student.xml").write_bytes(graph)
    (folder / "student.bin").write_bytes(weights)
    return folder / "student.xml"


def openvino_files(rng, folder):
    """A graph or weights of OpenVINO: truncated, flipped, with odd layers, edges and sizes."""
    path = valid_files(folder)
    weights = path.with_suffix(".bin")
    kind = rng.choices(["weights", "bytes", "tree", "laughs"], [20, 25, 53, 2])[0]
    if kind == "weights":
        weights.write_bytes(damage.of_bytes(rng, weights.read_bytes()))
    elif kind == "bytes":
        path.write_bytes(damage.of_bytes(rng, path.read_bytes()))
    elif kind == "tree":
        path.write_bytes(_with_another_graph(rng, path.read_bytes()))
    else:
        path.write_bytes(LAUGHS)
    if rng.random() < 0.6:  # a stranger writes the hash that fits
        _write_hash(path, weights)
    read_ir(rng.choice(READERS), path)


def read_ir(action, path):
    """Reads a graph as a command does."""
    if action == "evaluate":
        main(["evaluate", str(path), "--recipe", "quickstart", "-q"])
        return
    forked.note_inputs()
    if action == "facts":
        timing._artefact("a", path, timing.BenchRequest(files=(str(path),)))
    else:
        load(path)


def _write_hash(path, weights):
    content = path.read_bytes()
    start = content.find(b'<weights_sha256 value="')
    if start >= 0:
        start += len(b'<weights_sha256 value="')
        path.write_bytes(content[:start] + sha256_of(weights).encode() + content[start + 64 :])


def _with_another_graph(rng, content):
    """Changes, removes or doubles elements and attributes of the graph."""
    root = ET.fromstring(content)
    parents = {child: parent for parent in root.iter() for child in parent}
    for _ in range(rng.choice([1, 1, 2, 5])):
        element = rng.choice(list(parents))
        kind = rng.choice(["attribute", "attribute", "attribute", "text", "remove", "double", "no attribute"])
        if kind == "attribute" and element.attrib:
            nasty = rng.choice(
                [*NUMBERS, *(text for text in damage.NASTY_TEXT if "\0" not in text and "\x1b" not in text)]
            )
            element.attrib[rng.choice(list(element.attrib))] = nasty
        elif kind == "no attribute" and element.attrib:
            del element.attrib[rng.choice(list(element.attrib))]
        elif kind == "text" and element.tag == "dim":
            element.text = rng.choice(NUMBERS)
        elif kind == "remove" and element in list(parents[element]):
            parents[element].remove(element)
        elif kind == "double":
            parents[element].append(element)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


openvino_files.prepare = _valid_files
__all__ = ["openvino_files", "read_ir", "valid_files"]
