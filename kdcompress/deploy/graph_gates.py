"""The gates that look at an ONNX file itself: valid, of the right opset, one file, silent about its maker."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from kdcompress.deploy.formats.onnx import PREFIX, PROVIDER, OnnxModel, opset_of
from kdcompress.deploy.gate import Gate, equal
from kdcompress.deploy.machine_paths import folders_in, is_path
from kdcompress.deploy.onnx_file import all_tensors

_LABELS = PREFIX + "labels"


def graph_gates(file: OnnxModel, opset: int | None) -> list[Gate]:
    """Checks the ONNX file itself: onnx_checker, opset, one_file_no_paths and provider.

    Args:
        file: Opened in onnxruntime.
        opset: Requested opset; None: any.
    """
    model = onnx.load(file.path, load_external_data=False)
    written = opset_of(model)
    expected = (
        f"IR version {model.ir_version}; limit: {'as asked for' if opset else 'the choice of the exporter'}"
    )
    leaks = list(dict.fromkeys([*_outside(model), *paths_in(model)]))
    clean = "all weights inside, no folder of this machine named"
    found = f"found: {'; '.join(leaks[:3])}" if leaks else clean
    return [
        _checker(model),
        equal("opset", written, opset or written, expected),
        equal("one_file_no_paths", len(leaks), 0, found),
        equal(
            "provider",
            ", ".join(file.providers),
            PROVIDER,
            "what onnxruntime runs it on; limit: as asked for",
        ),
    ]


def paths_in(model: onnx.ModelProto) -> Iterator[str]:
    """Yields the folders of this machine and all texts like a path in the file, outside its weights."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        # Random bytes contain everything; names are what is searched.
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
    content = bare.SerializeToString()
    yield from folders_in(content)
    yield from (text[:80] for text in _texts(model) if is_path(text))


def _checker(model: onnx.ModelProto) -> Gate:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Gate("onnx_checker", False, "invalid", "valid", str(error).strip().split("\n", 1)[0])
    return Gate("onnx_checker", True, "valid", "valid", "onnx.checker with inferred shapes")


def _outside(model: onnx.ModelProto) -> Iterator[str]:
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield f"weights outside the file: {tensor.name}"


def _texts(model: onnx.ModelProto) -> Iterator[str]:
    """Yields the texts in a file except the class names, which are the user's own and may look like paths."""
    yield from (entry.value for entry in model.metadata_props if entry.key != _LABELS)
    yield model.doc_string
    yield model.graph.doc_string
    yield from (entry.value for entry in model.graph.metadata_props)
    for node in model.graph.node:
        yield node.doc_string
        yield from (entry.value for entry in node.metadata_props)
    for tensor in model.graph.initializer:
        yield tensor.doc_string
