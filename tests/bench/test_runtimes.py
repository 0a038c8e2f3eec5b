"""Every runtime gives the same answer, in the precision that it says; what is missing is said first."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import pytest
from deploy.small_student import SPEC, images, trained_student

from kdcompress.bench import runtimes
from kdcompress.bench.measure import Artefact, Protocol, measure
from kdcompress.deploy.config import write_config
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.formats import safetensors
from kdcompress.errors import UserError

SHORT = Protocol(block_s=0.02, turns=1, min_calls=2, warmup_s=0)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    network = trained_student()
    onnx_format.write(network, SPEC, folder / "student.onnx", metadata={})
    safetensors.write(network, SPEC, folder / "student.safetensors", metadata={})
    names = tuple("abcde")
    write_config(
        folder / "config.json", model="cifar/resnet8", num_classes=5, spec=SPEC, class_names=names, extra={}
    )
    return folder


def _by_runtime(document):
    assert document["failures"] == []
    return {(r["runtime"], r["precision"], r["batch"]): r for r in document["results"]}


def test_openvino_computes_in_float32_unless_asked_for_bfloat16(student):
    openvino = pytest.importorskip("openvino")
    artefact = Artefact("student", student / "student.onnx", ("onnxruntime", "openvino"))
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        artefact = Artefact("student", artefact.file, ("onnxruntime", "openvino", "openvino-bf16"))
    document = measure([artefact], rounds=1, batch=[1, 3], images=images(5).numpy(), protocol=SHORT)
    found = _by_runtime(document)
    for batch in (1, 3):
        exact = found["openvino", "fp32", batch]
        assert exact["provider"] == "CPU"
        assert exact["parity"]["to"] == "student (onnxruntime, threads 1, batch 1)"
        assert exact["parity"]["n"] == 5
        assert exact["parity"]["max_err_over_spread"] < 1e-4
        if len(artefact.runtimes) > 2:
            assert 1e-4 < found["openvino", "bf16", batch]["parity"]["max_err_over_spread"] < 0.5
    assert document["env"]["runtimes"]["openvino"]


def test_openvino_is_imported_without_its_telemetry():
    pytest.importorskip("openvino")
    code = "import sys; from kdcompress.bench.device.worker import OpenVino; OpenVino().start()\n"
    code += "assert 'openvino' in sys.modules\n"
    code += "assert not any(name.startswith('openvino_telemetry.') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_openvino_runs_a_quantised_file_in_int8(tmp_path):
    pytest.importorskip("openvino")
    entry = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 1, 4, 4])
    leave = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    weights = {
        "scale": np.float32(1 / 255), "zero": np.uint8(0), "step": np.full(3, 0.01, np.float32),
        "none": np.zeros(3, np.int8), "w": np.arange(-24, 24, dtype=np.int8).reshape(3, 1, 4, 4),
    }  # fmt: skip
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["bytes"]),
        onnx.helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["rounded"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "step", "none"], ["weight"], axis=0),
        onnx.helper.make_node("Conv", ["rounded", "weight"], ["map"]),
        onnx.helper.make_node("Flatten", ["map"], ["logits"]),
    ]
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "q", [entry], [leave], tensors)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "q.onnx")
    artefact = Artefact("q", tmp_path / "q.onnx", ("onnxruntime", "openvino"), precision="int8")
    found = _by_runtime(measure([artefact], rounds=1, protocol=SHORT))
    assert found["openvino", "int8", 1]["parity"]["max_err_over_spread"] < 0.01


def test_a_file_and_the_weights_beside_it_are_one_network(student):
    onnx_file = Artefact("student", student / "student.onnx", network="student")
    weights = Artefact("student (PyTorch)", student / "student.safetensors", network="student")
    document = measure([onnx_file, weights], rounds=1, images=images(5).numpy(), protocol=SHORT)
    parity = _by_runtime(document)["torch", "fp32", 1]["parity"]
    assert (parity["to"], parity["top1_agreement"]) == ("student (onnxruntime, threads 1, batch 1)", 1)
    assert parity["max_err_over_spread"] < 1e-4


def test_other_weights_under_the_same_name_are_warned_of(student, tmp_path):
    onnx_format.write(trained_student(seed=1), SPEC, tmp_path / "student.onnx", metadata={})
    first = Artefact("one", student / "student.onnx", network="student")
    other = Artefact("other", tmp_path / "student.onnx", network="student")
    document = measure([first, other], rounds=1, images=images(5).numpy(), protocol=SHORT)
    warnings = document["results"][1]["warnings"]
    assert any("is it the same network?" in warning for warning in warnings)


@pytest.mark.exhaustive
def test_a_compiled_network_gives_what_the_eager_one_gives(student):
    artefact = Artefact("student", student / "student.safetensors", ("torch", "torch-compile"))
    document = measure([artefact], rounds=1, batch=[2], images=images(4).numpy(), protocol=SHORT)
    found = _by_runtime(document)
    compiled, eager = found["torch-compile", "fp32", 2], found["torch", "fp32", 2]
    assert compiled["parity"]["max_err_over_spread"] < 1e-4
    assert compiled["first_ms"] > 10 * eager["first_ms"]  # it compiles there, and not before


@pytest.mark.exhaustive
def test_importing_a_runtime_is_timed_apart_from_loading_a_file(student):
    document = measure([Artefact("s", student / "student.safetensors")], rounds=1, protocol=SHORT)
    (result,) = document["results"]
    assert result["import_ms"] > result["load_ms"] > 0
    assert result["rss_mb"]["base"] > 100  # torch itself


def test_a_runtime_that_is_not_installed_is_asked_for_before_anything_starts(student, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"the runtime 'openvino' needs openvino: pip install 'kdcompress\[openvino\]'"
    with pytest.raises(UserError, match=message):
        measure([Artefact("s", student / "student.onnx", ("openvino",))])
    runtimes.check_runtime("onnxruntime")


def test_a_file_that_a_runtime_does_not_take_is_refused(student):
    with pytest.raises(UserError, match=r"the runtime 'openvino' takes \.onnx and \.xml files"):
        measure([Artefact("s", student / "student.safetensors", ("openvino",))])


@pytest.mark.parametrize(
    ("name", "of_file", "precision"),
    [
        ("onnxruntime", "fp16", "fp16"),
        ("onnxruntime", "int8", "int8"),
        ("openvino", "fp16", "fp32"),
        ("openvino", "int8", "int8"),
        ("openvino-bf16", "fp32", "bf16"),
        ("openvino-bf16", "int8", "int8+bf16"),
        ("file.py:Own", "fp32", "fp32"),
    ],
)
def test_the_precision_is_the_runtimes_where_it_does_not_follow_the_file(name, of_file, precision):
    assert runtimes.precision(name, of_file) == precision
