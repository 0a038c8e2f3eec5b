"""The second output `probabilities` of an exported file: softmax(logits / temperature)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from pydantic import TypeAdapter

from kdcompress.deploy.gate import Gate, at_most
from kdcompress.documents import parse_document
from kdcompress.schemas.document import Positive

NAME = "probabilities"
KEY = "temperature"
"""Of the metadata, under `kdcompress.`."""
LIMIT = 1e-5
"""Of a probability: float32 against float64."""

_PREFIX = f"{NAME}/"


def with_probabilities(model: ModelProto, temperature: float) -> ModelProto:
    """Returns the graph with the output `probabilities`; its first output is not changed.

    Args:
        model: Its first output is the logits `[batch, classes]`, in float32.
        temperature: Divides the logits.
    """
    whole = ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    logits = graph.output[0]
    constant, scaled = f"{_PREFIX}{KEY}", f"{_PREFIX}scaled"
    graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), constant))
    graph.node.append(helper.make_node("Div", [logits.name, constant], [scaled], scaled))
    graph.node.append(helper.make_node("Softmax", [scaled], [NAME], f"{_PREFIX}softmax", axis=1))
    graph.output.append(helper.make_tensor_value_info(NAME, TensorProto.FLOAT, None))
    graph.output[-1].type.CopyFrom(logits.type)
    return whole


def without_probabilities(model: ModelProto) -> ModelProto:
    """Returns the graph as it was before `with_probabilities`, for tools that change its numbers."""
    plain = ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    for entries in (graph.output, graph.node, graph.initializer, graph.value_info):
        own = [entry for entry in entries if entry.name == NAME or entry.name.startswith(_PREFIX)]
        for entry in own:
            entries.remove(entry)
    return plain


def has_probabilities(model: ModelProto) -> bool:
    """Returns whether the graph has the output."""
    return any(output.name == NAME for output in model.graph.output)


def is_pair(output_names: tuple[str, ...]) -> bool:
    """Returns whether a file has logits and probabilities, and nothing else."""
    return len(output_names) == 2 and output_names[1] == NAME


def probabilities_gate(
    outputs: dict[str, NDArray[np.float32]], temperature: float, *, prefix: str = ""
) -> Gate:
    """Compares a file's probabilities with the softmax of its own logits, computed in float64.

    Args:
        outputs: The file's outputs of real images, by name; the first are the logits `[N, K]`.
        temperature: The temperature that the file must have.
        prefix: Of the gate's name.
    """
    name, count = f"{prefix}{NAME}", len(next(iter(outputs.values())))
    if NAME not in outputs:
        return Gate(name, False, None, LIMIT, f"the file has no output {NAME}")
    logits = next(iter(outputs.values())).astype(np.float64) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    apart = float(np.abs(outputs[NAME] - powers / powers.sum(1, keepdims=True)).max())
    detail = f"largest difference to softmax(logits / {temperature:g}), on {count} real images"
    return at_most(name, apart, LIMIT, detail)


def temperature_in(model: ModelProto, prefix: str, source: str) -> float | None:
    """Reads the temperature of a graph with probabilities from its metadata; None: it has none.

    Args:
        model: The graph.
        prefix: Of this project's keys.
        source: Name of the file, for messages.

    Raises:
        UserError: The entry is absent or damaged.
    """
    if not has_probabilities(model):
        return None
    key = f"{prefix}{KEY}"
    text = {entry.key: entry.value for entry in model.metadata_props}.get(key, "")
    return float(parse_document(text, f"{source}: {key} in its metadata", TypeAdapter(Positive)))
