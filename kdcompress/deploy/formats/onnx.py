"""ONNX: one file with the normalisation in its graph, a free batch size, and no trace of the machine."""

from __future__ import annotations

import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import nn

from kdcompress import __version__
from kdcompress.atomic import write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.macs import evaluating
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.onnx_file import read_onnx
from kdcompress.deploy.probabilities import is_pair, with_probabilities
from kdcompress.errors import NetworkError, UserError
from kdcompress.tasks import CLASSIFICATION, Task, task_with_output

SUFFIX = ".onnx"
TITLE = "ONNX"
RUNTIME = "onnxruntime"
INPUT = "images"
PREFIX = "kdcompress."
PROVIDER = "CPUExecutionProvider"
PROBABILITIES = True
"""`write` takes a temperature and adds the second output `probabilities`."""
OLDEST_OPSET = 18

_EXAMPLE_BATCH = 2
"""Of the trace. A batch of one lets some networks bake it into a reshape; the gates then run 1, 2 and 3."""

ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def write(
    network: nn.Module,
    spec: InputSpec,
    path: Path,
    *,
    metadata: dict[str, str],
    opset: int | None = None,
    task: Task = CLASSIFICATION,
    outputs: Sequence[str] = (),
    temperature: float | None = None,
) -> None:
    """Exports the network with its normalisation; equal weights give equal bytes.

    Args:
        network: The plain network; it is not changed.
        spec: Its input.
        path: Destination.
        metadata: Goes into the file's `metadata_props`, each key under `kdcompress.`.
        opset: Opset of the standard operators, 18 or newer. None: the exporter's choice.
        task: Kind of its outputs, which names the output.
        outputs: Names of the outputs of a network that returns a tuple of them; empty: it returns one.
        temperature: Adds the output `probabilities`, softmax(logits / temperature); None: logits alone.

    Raises:
        NetworkError: The network cannot be exported, or gives something other than logits.
        UserError: The exporter cannot write this opset.
        WorldError: The disk is full or fails.
    """
    model = graph(
        network, spec, metadata=metadata, opset=opset, task=task, outputs=outputs, temperature=temperature
    )
    write_bytes(path, model.SerializeToString(deterministic=True))


def graph(
    network: nn.Module,
    spec: InputSpec,
    *,
    metadata: dict[str, str],
    opset: int | None = None,
    task: Task = CLASSIFICATION,
    outputs: Sequence[str] = (),
    temperature: float | None = None,
) -> onnx.ModelProto:
    """Makes the ONNX model that `write` writes; its arguments and errors.

    Raises:
        NetworkError: See there.
        UserError: See there.
    """
    check_opset(opset)
    module = Deployed(copy.deepcopy(network), spec).to("cpu", torch.float32).eval()
    module = module.to(memory_format=torch.contiguous_format)
    example = torch.zeros(_EXAMPLE_BATCH, spec.channels, spec.height, spec.width)
    _check_outputs(module, example, task, len(outputs))
    try:
        with _quietly():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=[INPUT],
                output_names=list(outputs or [task.output]),
                dynamic_shapes=({0: "batch"},),
                opset_version=opset,
            )
    except torch.onnx.OnnxExporterError as error:
        raise NetworkError(
            f"{type(network).__name__}: cannot be exported to ONNX ({_first_line(error.__cause__ or error)})"
        ) from error
    assert program is not None
    # Without this every node carries a stack trace with the paths of the machine it was traced on.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.producer_name, program.model.producer_version = "kdcompress", __version__
    model = program.model_proto
    properties = {PREFIX + key.removeprefix(PREFIX): value for key, value in metadata.items()}
    onnx.helper.set_model_props(model, dict(sorted(properties.items())))
    written = opset_of(model)
    if opset is not None and written != opset:
        raise UserError(f"opset {opset} was asked for, but the exporter wrote {written}; ask for less")
    # The exporter always says IR version 10; runtimes that need an older opset need an older IR too.
    needed = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = min(model.ir_version, needed)
    if temperature is not None:
        model = with_probabilities(model, temperature)
    return _check_model(model)


def check_opset(opset: int | None) -> None:
    """Refuses an opset that the exporter would silently raise.

    Raises:
        UserError: It is older than `OLDEST_OPSET`.
    """
    if opset is not None and opset < OLDEST_OPSET:
        raise UserError(
            f"opset {opset} was asked for, but the exporter can only write {OLDEST_OPSET} and newer; "
            f"ask for {OLDEST_OPSET}, or for none"
        )


def open_(path: Path, threads: int = 1) -> OnnxModel:
    """Opens the file in onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: Within one operator.

    Raises:
        UserError: The file cannot be read, or is not a network of one input and one output.
    """
    return OnnxModel(Path(path), threads)


class OnnxModel:
    """Computes logits or features of images in [0, 1] through onnxruntime.

    Args:
        path: The file.
        threads: Within one operator.
        several: True: it may have several outputs; a call gives the first of them. Probabilities beside the
            logits are always accepted.

    Attributes:
        task: Kind of its outputs.
        output_names: Their names.
    """

    def __init__(self, path: Path, threads: int = 1, *, several: bool = False) -> None:
        self.path = path
        self._opset: int | None = None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it would write on stderr, the message of its exception says
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{path}: onnxruntime opens no path that is not UTF-8 text; rename it") from None
        read_onnx(path)
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=[PROVIDER])
        except ORT_ERRORS as error:
            raise UserError(f"{path}: onnxruntime cannot load it ({_first_line(error)})") from None
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.output_names = tuple(output.name for output in outputs)
        several = several or is_pair(self.output_names)
        if len(inputs) == 1 and len(outputs) > 1 and not several:
            names = ", ".join(self.output_names)
            raise UserError(
                f"{path}: has several outputs ({names}), and one is expected; cut it at one of them with "
                "onnx.utils.extract_model"
            )
        if len(inputs) != 1 or (len(outputs) != 1 and not several) or len(inputs[0].shape) != 4:
            raise UserError(
                f"{path}: expected one input of four axes and one output, as of an image classifier"
            )
        self._input = inputs[0].name
        self.task = task_with_output(outputs[0].name)
        self.input_shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)

    @property
    def providers(self) -> tuple[str, ...]:
        """Returns the execution providers really in use, in order of preference."""
        return tuple(self.session.get_providers())

    @property
    def metadata(self) -> dict[str, str]:
        """Returns the file's `metadata_props`."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    @property
    def opset(self) -> int:
        """Returns the opset of the standard operators in the file."""
        if self._opset is None:
            try:
                self._opset = opset_of(read_onnx(self.path))
            except StopIteration:
                raise UserError(f"{self.path}: does not say its opset") from None
        return self._opset

    def __call__(self, images: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Computes outputs `[B, K]` of float32 `[B, C, H, W]`, or uint8 `[B, H, W, C]` if the file says so.

        Raises:
            UserError: The file does not take images of this shape, the batch size included.
        """
        return next(iter(self.outputs(images).values()))

    def outputs(self, images: NDArray[np.float32] | NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Computes every output, by name; arguments and errors as of a call.

        Raises:
            UserError: See there.
        """
        try:
            outputs = self.session.run(None, {self._input: images})
        except ORT_ERRORS as error:
            shape = "×".join(map(str, images.shape))
            raise UserError(f"{self.path}: fails on input of {shape}: {_first_line(error)}") from None
        return dict(zip(self.output_names, outputs, strict=True))


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of the standard operators that a model imports."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def _check_outputs(module: nn.Module, example: torch.Tensor, task: Task, several: int) -> None:
    with evaluating(module), torch.no_grad():
        outputs = module(example)
    assert not several or len(outputs) == several, f"{len(outputs)} outputs, {several} names"
    for output in outputs if several else [outputs]:
        problem = task.output_problem(output, len(example))
        if problem is not None:
            raise NetworkError(problem)


def _check_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model, with shapes inferred anew if the exporter left inconsistent ones.

    onnxruntime ignores them, other tools do not. What is still wrong afterwards the gates find.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        del model.graph.value_info[:]
        return onnx.shape_inference.infer_shapes(model)
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    # The exporter warns of its own deprecations, logs what it did, and prints graphs when it fails. What
    # matters is proved by the gates or said in the exception; standard output belongs to --json.
    hush = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch gives each of its loggers a level of its own
    try:
        with warnings.catch_warnings(), redirect_stdout(hush), redirect_stderr(hush):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    # The exporter colours its messages for a terminal.
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().split("\n", 1)[0]
