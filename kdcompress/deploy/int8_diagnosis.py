"""Causes that keep int8 from being faster: facts of the processor, and of the graph that onnxruntime runs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from kdcompress.deploy.float_graph import Layer, layers_of, prepare_graph
from kdcompress.deploy.formats.onnx import PROVIDER
from kdcompress.deploy.quantize import Target

VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Flags of x86 processors with an instruction for sums of int8 products."""
DOT = frozenset({"asimddp", "i8mm"})
"""The same of ARM."""
GROUPED_SHARE = 0.02
"""Of all multiply-accumulates, from which grouped convolutions are worth a word."""
EDGES = 4
"""Conversions that every file has: at its input and its output, and at most one more of each."""
LITTLE_MACS = 5_000_000
"""Of one image. A core does as many in float32 in about a tenth of a millisecond, where fixed costs count."""

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MOVES = frozenset({"Transpose", "Reshape", "Split", "Concat", "Slice", "Gather"})


@dataclass(frozen=True, slots=True)
class Layout:
    """The graph of an int8 file after onnxruntime's own optimisation.

    Args:
        conversions: Between int8 and float32.
        in_float: Operators that compute in float32 between two conversions: how many of each type.
        moves: Operators that only move data.
        operators: All of them.
    """

    conversions: int
    in_float: Counter[str]
    moves: int
    operators: int


def usual_target(machine: str, isa: Collection[str]) -> Target:
    """Returns the default target of an int8 file: this machine's kind of processor.

    Args:
        machine: Result of `platform.machine()`.
        isa: Flags of the processor.
    """
    if machine.lower().startswith(("arm", "aarch")):
        return "arm"
    return "x86" if VNNI.intersection(isa) else "x86-novnni"


def layout_of(path: Path) -> Layout:
    """Reads the graph of a file as onnxruntime runs it here, after its own fusions."""
    with tempfile.TemporaryDirectory(prefix="kdcompress-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(optimised)
        onnxruntime.InferenceSession(path, options, providers=[PROVIDER])
        graph = onnx.load(optimised).graph
    given_in_float = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    outputs = {output.name for output in graph.output}
    in_float = Counter(
        node.op_type
        for node in graph.node
        if node.op_type not in _CONVERSIONS and given_in_float.intersection(node.input)
    )
    return Layout(
        conversions=sum(node.op_type in _CONVERSIONS for node in graph.node)
        - len(given_in_float.intersection(outputs)),
        in_float=in_float,
        moves=sum(node.op_type in _MOVES for node in graph.node),
        operators=len(graph.node),
    )


def slow_causes(
    exact: Path, int8: Path, machine: str, isa: Collection[str], in_float: Sequence[str]
) -> list[str]:
    """Lists why an int8 file is not faster here, half a sentence per cause; empty if none was found.

    Args:
        exact: The float32 file.
        int8: The file made from it.
        machine: Result of `platform.machine()`.
        isa: Flags of the processor.
        in_float: Layers that stay in float because they were asked to.
    """
    layers, layout = list(layers_of(prepare_graph(exact))), layout_of(int8)
    return [*_of_the_processor(machine, isa), *_of_the_graph(layout, in_float), *_of_the_layers(layers)]


def grouped_share(layers: Sequence[Layer]) -> float:
    """Computes the share of the multiply-accumulates in grouped (also depthwise) convolutions."""
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if layer.groups > 1) / total if total else 0.0


def _of_the_processor(machine: str, isa: Collection[str]) -> list[str]:
    if machine.lower().startswith(("arm", "aarch")):
        missing = not DOT.intersection(isa)
        return ["this processor has no dot product of int8 (asimddp, i8mm)"] if missing else []
    if VNNI.intersection(isa):
        return []
    return ["this processor has no VNNI (avx512_vnni, avx_vnni), the instructions that make int8 fast"]


def _of_the_graph(layout: Layout, in_float: Sequence[str]) -> list[str]:
    found = []
    if layout.conversions > EDGES:
        between = ", ".join(f"{name} ({count})" for name, count in layout.in_float.most_common(3))
        around = f" around what onnxruntime computes in float: {between}" if between else ""
        found.append(f"{layout.conversions} conversions between int8 and float{around}")
    if in_float:
        found.append(f"{_layers(len(in_float))} left in float by --int8-rescue (export.int8.rescue)")
    if 3 * layout.moves > layout.operators:
        found.append(
            f"{layout.moves} of {layout.operators} operators only move data, which int8 leaves as slow"
        )
    return found


def _of_the_layers(layers: Sequence[Layer]) -> list[str]:
    found, share = [], grouped_share(layers)
    if share > GROUPED_SHARE:
        found.append(
            f"grouped and depthwise convolutions do {100 * share:.0f} % of the multiply-accumulates; "
            "their int8 kernels gain little"
        )
    macs = sum(layer.macs for layer in layers)
    if macs < LITTLE_MACS:
        found.append(f"the network is so small ({macs / 1e6:.2g} M MACs) that fixed overhead dominates")
    return found


def _layers(count: int) -> str:
    return f"{count} layer{'s' if count > 1 else ''}"
