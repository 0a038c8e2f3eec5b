"""OpenVINO IR: `student.xml` and the weights beside it in `student.bin`, made of the graph that ONNX gets."""

from __future__ import annotations

import importlib
import io
import re
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kdcompress.atomic import sha256_of, translated, write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy import probabilities
from kdcompress.deploy.formats import onnx
from kdcompress.deploy.gate import Gate, equal
from kdcompress.deploy.ir_size import read_ir
from kdcompress.deploy.machine_paths import folders_in, is_path
from kdcompress.errors import NetworkError, UserError
from kdcompress.tasks import CLASSIFICATION, TASKS, Task

SUFFIX = ".xml"
TITLE = "OpenVINO"
RUNTIME = "openvino"
BESIDE = (".bin",)
"""The weights. They get their names before the graph, which says what their hash is."""
PACKAGE = "openvino"
PROBABILITIES = True

_DEVICE = "CPU"
_OWN = "kdcompress"
_WEIGHTS = "weights_sha256"
_LABELS = "labels"
_GIVEN_BY_NUMBER = re.compile(r"[A-Za-z]+_\d+")
"""Names that OpenVINO gives to what it makes itself: they count all that this process has ever made."""


def write(
    network: nn.Module,
    spec: InputSpec,
    path: Path,
    *,
    metadata: dict[str, str],
    opset: int | None = None,
    task: Task = CLASSIFICATION,
    temperature: float | None = None,
) -> None:
    """Converts the network with its normalisation, weights in float32; equal weights give equal bytes.

    Args:
        network: The plain network; it is not changed.
        spec: Its input.
        path: Path of the graph; the weights go beside it.
        metadata: Goes into the graph's `rt_info`, under `kdcompress`.
        opset: Opset of the ONNX graph that is converted; None: the exporter's choice.
        task: Kind of its outputs, which names the output.
        temperature: Adds the output `probabilities`, softmax(logits / temperature); None: logits alone.

    Raises:
        NetworkError: The network cannot be exported or converted.
        UserError: OpenVINO is not installed.
        WorldError: The disk is full or fails.
    """
    library = _library()
    model = onnx.graph(network, spec, metadata={}, opset=opset, task=task, temperature=temperature)
    with translated(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".ir-") as folder:
        file = Path(folder) / "a.xml"
        try:
            # From memory: of a file it would write down the name.
            converted = library.convert_model(io.BytesIO(model.SerializeToString(deterministic=True)))
            library.save_model(converted, str(file), compress_to_fp16=False)
        except RuntimeError as error:
            raise NetworkError(
                f"{type(network).__name__}: OpenVINO cannot convert it ({_reason(error)})"
            ) from error
        document = ET.parse(file)
        weights = file.with_suffix(BESIDE[0]).read_bytes()
        facts = {
            **{key.removeprefix(onnx.PREFIX): value for key, value in metadata.items()},
            _WEIGHTS: sha256_of(file.with_suffix(BESIDE[0])),
        }
    _rename(document.getroot(), {node.name for node in model.graph.node} | _tensors(model))
    _describe(document.getroot(), facts)
    ET.indent(document, "\t")
    write_bytes(path.with_suffix(BESIDE[0]), weights)
    write_bytes(path, ET.tostring(document.getroot(), encoding="utf-8", xml_declaration=True) + b"\n")


def open_(path: Path, threads: int = 1) -> OpenVinoModel:
    """Compiles the file for this machine's CPU, in float32.

    Args:
        path: The `.xml` file.
        threads: Threads of the inference.

    Raises:
        UserError: OpenVINO is not installed, the file or its weights cannot be read or do not belong
            together, or it is not a network of one input and one output.
    """
    return OpenVinoModel(Path(path), threads)


def gates(file: OpenVinoModel, opset: int | None) -> list[Gate]:
    """Checks the file itself: `openvino_pair_no_paths`, `openvino_weights` and `openvino_provider`.

    Args:
        file: Opened.
        opset: ONNX opset; not used here.
    """
    leaks = list(dict.fromkeys(_paths_in(file.path)))
    found = f"found: {'; '.join(leaks[:3])}" if leaks else "no folder of this machine named"
    kinds = ", ".join(sorted(_float_kinds(file.document)))
    used = f"{file.providers[0]} in {file.precision}"
    return [
        equal("openvino_pair_no_paths", len(leaks), 0, f"{found}; the weights are those the graph names"),
        equal("openvino_weights", kinds, "f32", "number format of the weights"),
        equal(
            "openvino_provider", used, f"{_DEVICE} in f32", "what OpenVINO runs it on; limit: as asked for"
        ),
    ]


class OpenVinoModel:
    """Computes logits or features of images in [0, 1] through OpenVINO.

    Left to itself OpenVINO computes in bfloat16 where the processor can; float32 is what it is held to here.

    Args:
        path: The `.xml` file.
        threads: Threads of the inference.

    Attributes:
        task: Kind of its outputs.
        output_names: Their names.
        input_shape: Input shape of its input; "batch" where any number goes.
        document: The graph.
        precision: That it is computed in.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        library = _library()
        self.path = path
        self.document = _document(path)
        self.metadata = _metadata(self.document)
        check_weights(path)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = library.Core()
            compiled = core.compile_model(core.read_model(str(path)), _DEVICE, settings)
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot load it ({_reason(error)})") from None
        self.output_names = tuple(self._name(output) for output in compiled.outputs)
        single = len(compiled.outputs) == 1 or probabilities.is_pair(self.output_names)
        if len(compiled.inputs) != 1 or not single:
            raise UserError(f"{path}: expected one input and one output, as of an image classifier")
        shape = compiled.input(0).get_partial_shape()
        if shape.rank.is_dynamic or len(shape) != 4:
            raise UserError(f"{path}: expected an input of four axes, as of an image classifier")
        sizes = [axis.get_length() if axis.is_static else None for axis in shape]
        self.input_shape: tuple[int | str | None, ...] = (sizes[0] or "batch", *sizes[1:])
        named = compiled.output(0).get_names()
        self.task = next((task for task in TASKS if task.output in named), CLASSIFICATION)
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self.providers = tuple(compiled.get_property("EXECUTION_DEVICES"))
        self._request = compiled.create_infer_request()

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes outputs `[B, K]` of float32 images `[B, C, H, W]`.

        Raises:
            UserError: The file does not take images of this shape, the batch size included.
        """
        return next(iter(self.outputs(images).values()))

    def outputs(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Computes every output, by name; arguments and errors as of a call.

        Raises:
            UserError: See there.
        """
        try:
            self._request.infer([images], share_inputs=True)
        except RuntimeError as error:
            shape = "×".join(map(str, images.shape))
            raise UserError(f"{self.path}: fails on input of {shape}: {_reason(error)}") from None
        # Copies: the next call writes into the same memory.
        return {
            name: self._request.get_output_tensor(place).data.copy()
            for place, name in enumerate(self.output_names)
        }

    @staticmethod
    def _name(output: Any) -> str:
        """One of the names of an output; that of the probabilities if it is among them."""
        names = output.get_names()
        return probabilities.NAME if probabilities.NAME in names else next(iter(sorted(names)), "")


def _library() -> Any:
    """Imports the `openvino` package.

    Raises:
        UserError: It is not installed.
    """
    if "openvino" not in sys.modules:
        # Without its telemetry, which reports home from a forked copy of the process. Whoever else imports
        # that package afterwards gets it.
        known = sys.modules.get("openvino_telemetry")
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            importlib.import_module(PACKAGE)
        except ModuleNotFoundError:
            raise UserError(
                "the format 'openvino' needs openvino: pip install 'kdcompress[openvino]'"
            ) from None
        finally:
            del sys.modules["openvino_telemetry"]
            if known is not None:
                sys.modules["openvino_telemetry"] = known
    return sys.modules["openvino"]


def _tensors(model: Any) -> set[str]:
    return {name for node in model.graph.node for name in (*node.input, *node.output)}


def _rename(root: ET.Element, known: set[str]) -> None:
    """Gives the layers that OpenVINO has numbered the number of their place in this file."""
    for layer in root.iter("layer"):
        if layer.attrib["name"] not in known and _GIVEN_BY_NUMBER.fullmatch(layer.attrib["name"]):
            layer.attrib["name"] = f"{layer.attrib['type']}_{layer.attrib['id']}"


def _describe(root: ET.Element, facts: dict[str, str]) -> None:
    """Puts our own entries into the graph's `rt_info`, in place of how it was converted and from what."""
    root.attrib["name"] = _OWN
    info = root.find("rt_info")
    if info is None:
        info = ET.SubElement(root, "rt_info")
    for name in ("conversion_parameters", "framework"):
        for entry in info.findall(name):
            info.remove(entry)
    own = ET.SubElement(info, _OWN)
    for key, value in sorted(facts.items()):
        ET.SubElement(own, key, value=value)


def _document(path: Path) -> ET.Element:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    root = read_ir(path)
    if root.tag != "net" or root.find("layers") is None:
        raise UserError(f"{path}: is no network of OpenVINO, whose files begin with <net>")
    return root


def _metadata(root: ET.Element) -> dict[str, str]:
    """Reads our entries, under the names that they have in an ONNX file."""
    own = root.find(f"rt_info/{_OWN}")
    return {} if own is None else {onnx.PREFIX + entry.tag: entry.attrib.get("value", "") for entry in own}


def check_weights(path: Path) -> None:
    """Refuses a graph whose weights are not beside it.

    Args:
        path: The `.xml` file.

    Raises:
        UserError: It is no graph of OpenVINO, there are no weights, or others.
    """
    metadata, weights = _metadata(_document(path)), path.with_suffix(BESIDE[0])
    if not weights.is_file():
        raise UserError(f"{weights}: no such file; {path.name} needs the weights it came with beside it")
    facts = metadata.get(onnx.PREFIX + _WEIGHTS)
    if facts is not None and sha256_of(weights) != facts:
        raise UserError(f"{weights}: are not the weights that {path.name} came with, or damaged")


def _paths_in(path: Path) -> Iterator[str]:
    root = _document(path)
    own = root.find(f"rt_info/{_OWN}")
    for entry in [] if own is None else own.findall(_LABELS):
        entry.attrib["value"] = ""  # class names are the user's own and may look like anything
    yield from folders_in(path.read_bytes())
    for info in root.iter("rt_info"):
        for entry in info.iter():
            yield from (text[:80] for text in entry.attrib.values() if is_path(text))


def _float_kinds(root: ET.Element) -> set[str]:
    kinds = {
        data.attrib["element_type"]
        for layer in root.iter("layer")
        if layer.attrib["type"] == "Const" and (data := layer.find("data")) is not None
    }
    return {kind for kind in kinds if kind.startswith(("f", "bf", "nf"))}


def _reason(error: BaseException) -> str:
    """Returns the line of OpenVINO's message that says what is wrong, not where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[-1]
