"""An ONNX file of four nodes, made without PyTorch."""

from __future__ import annotations

import numpy as np
import onnx


def mean_classifier(path, batch="batch", size=8, opset=18, ir=9):
    """`logits[b, k] = (k + 1) * mean over pixels of image b`, in float32."""
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch, 1, size, size])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, 3])
    weight = onnx.numpy_helper.from_array(np.array([[1.0, 2.0, 3.0]], np.float32), "weight")
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["images"], ["map"]),
        onnx.helper.make_node("Flatten", ["map"], ["pooled"]),
        onnx.helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "mean", [images], [logits], [weight])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir),
        path,
    )
    return path
