"""Reads the size of a network from its OpenVINO graph, as `graph_size` reads it off an ONNX file."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from kdcompress.deploy.graph_size import GraphFacts
from kdcompress.documents import read_bytes
from kdcompress.errors import UserError

MOST_BYTES = 16 << 20
"""Largest graph; its weights are in a file of their own, and a ResNet-152 has 1 MiB."""
_MOST_AXES = 64
_PRODUCTS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
_NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    element: str
    """Of a constant; else empty."""
    inputs: tuple[int, ...]
    """The layers they come from, by id."""
    sizes: tuple[tuple[int, ...], ...]
    """Of its inputs; -1 is open."""
    output: tuple[int, ...]


def ir_facts(path: Path, shape: tuple[int, int, int] | None = None) -> GraphFacts:
    """Reads a graph; its weights are not looked at.

    Args:
        path: The `.xml` file.
        shape: (C, H, W) of the images where the file leaves it open; multiply-accumulates are then not known.

    Raises:
        UserError: It is no such file, or no network of images.
    """
    try:
        return _facts(path, read_ir(path))
    except (LookupError, ValueError, TypeError, OverflowError):
        raise UserError(f"{path}: is not a whole file of OpenVINO: an edge or a size is damaged") from None


def read_ir(path: Path) -> ET.Element:
    """Parses a graph of OpenVINO.

    Raises:
        UserError: It cannot be read, is larger than any graph, or is no whole document.
    """
    content = read_bytes(path, MOST_BYTES)
    try:
        return ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError) as error:  # the last ones of its encoding
        raise UserError(f"{path}: is not a whole file of OpenVINO ({error})") from None


def _facts(path: Path, root: ET.Element) -> GraphFacts:
    layers = _layers(root)
    entries = [layer for layer in layers.values() if layer.kind == "Parameter"]
    if root.tag != "net" or len(entries) != 1 or len(entries[0].output) != 4:
        raise UserError(
            f"{path}: expected one input of four axes (batch, C, H, W), as of an image classifier"
        )
    own = [size if size > 0 else None for size in entries[0].output[1:]]
    weights = _weights(layers)
    elements: dict[str, int] = {}
    for layer in weights:
        elements[layer.element] = elements.get(layer.element, 0) + math.prod(layer.output)
    most = max(elements, key=elements.__getitem__, default="f32")
    quantises = any(layer.kind == "FakeQuantize" for layer in layers.values())
    return GraphFacts(
        precision="int8" if quantises else _NAMES.get(most, most),
        parameters=sum(elements.values()),
        macs=None if None in own else _macs(layers),
        input_shape=(own[0], own[1], own[2]),
    )


def _layers(root: ET.Element) -> dict[int, _Layer]:
    edges: dict[int, dict[int, int]] = {}
    for edge in root.iter("edge"):
        into, port = int(edge.attrib["to-layer"]), int(edge.attrib["to-port"])
        edges.setdefault(into, {})[port] = int(edge.attrib["from-layer"])
    layers = {}
    for layer in root.iter("layer"):
        number = int(layer.attrib["id"])
        data = layer.find("data")
        outputs = [_size(port) for port in layer.findall("output/port")]
        layers[number] = _Layer(
            kind=layer.attrib["type"],
            element="" if data is None else data.attrib.get("element_type", ""),
            inputs=tuple(edges.get(number, {})[port] for port in sorted(edges.get(number, {}))),
            sizes=tuple(_size(port) for port in layer.findall("input/port")),
            output=outputs[0] if outputs else (),
        )
    return layers


def _size(port: ET.Element) -> tuple[int, ...]:
    axes = port.findall("dim")
    if len(axes) > _MOST_AXES:
        raise ValueError("too many axes")  # their product would never end
    return tuple(int(axis.text or -1) for axis in axes)


def _weights(layers: dict[int, _Layer]) -> list[_Layer]:
    """Lists the constants that are no scalars and no preprocessing of the images."""
    readers: dict[int, list[int]] = {}
    for number, layer in layers.items():
        for source in layer.inputs:
            readers.setdefault(source, []).append(number)
    before = {number for number, layer in layers.items() if layer.kind == "Parameter"}
    waiting = list(before)
    while waiting:  # each layer once, whatever the order in the file
        for number in readers.get(waiting.pop(), []):
            if layers[number].kind not in _PRODUCTS and number not in before:
                before.add(number)
                waiting.append(number)
    preparing = {source for number in before for source in layers[number].inputs}
    return [
        layer
        for number, layer in layers.items()
        if layer.kind == "Const"
        and number not in preparing
        and layer.element.startswith(("f", "bf", "i8", "u8"))
        and math.prod(layer.output) > 1
    ]


def _macs(layers: dict[int, _Layer]) -> int | None:
    total = 0
    for layer in layers.values():
        if layer.kind not in _PRODUCTS:
            continue
        image, weight = layer.output[1:], layer.sizes[1]
        # [Cout, Cin, kH, kW], in groups [G, Cout/G, Cin/G, kH, kW]; of a matrix product what is summed over.
        summed = {"Convolution": weight[1:], "GroupConvolution": weight[2:]}.get(
            layer.kind, layer.sizes[0][-1:]
        )
        if min((*image, *summed)) < 0:
            return None
        total += math.prod(image) * math.prod(summed)
    return total
