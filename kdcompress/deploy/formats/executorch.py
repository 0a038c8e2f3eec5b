"""ExecuTorch: `student.pte`, for phones and boards, with the operators of XNNPACK where it has them."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import nn

from kdcompress.atomic import write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.formats import onnx
from kdcompress.deploy.gate import Gate, equal
from kdcompress.deploy.machine_paths import folders_in, is_path
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.deploy.normalised import Deployed
from kdcompress.documents import parse_document
from kdcompress.errors import NetworkError, UserError
from kdcompress.tasks import CLASSIFICATION, EMBEDDING, Task

SUFFIX = ".pte"
TITLE = "ExecuTorch"
RUNTIME = "executorch"
PACKAGE = "executorch"

LARGEST = 16
"""Images at once: memory for so many is planned into the file. Fewer than pixels in a row come out of the
lowering, which tells the axes of a tensor apart by their lengths."""
_LEAST = 3
_EXAMPLE_BATCH = 2
_FORWARD = "forward"
_OWN = "kdcompress"
"""A method without arguments that gives the metadata as JSON: the file has no other place for them."""
_BACKBONE = "backbone"


def write(
    network: nn.Module,
    spec: InputSpec,
    path: Path,
    *,
    metadata: dict[str, str],
    opset: int | None = None,
    task: Task = CLASSIFICATION,
) -> None:
    """Lowers the network with its normalisation, in float32; equal weights give equal bytes.

    Args:
        network: The plain network; it is not changed.
        spec: Its input.
        path: Destination.
        metadata: Content of the method `kdcompress` of the file, beside the size of the network.
        opset: ONNX opset; not used here.
        task: Kind of its outputs; stands in the metadata.

    Raises:
        NetworkError: The network cannot be exported or lowered.
        UserError: ExecuTorch is not installed.
        WorldError: The disk is full or fails.
    """
    lower = _imported("exir").to_edge_transform_and_lower
    partitioner = _imported("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    module = Deployed(copy.deepcopy(network), spec).to("cpu", torch.float32).eval()
    module = module.to(memory_format=torch.contiguous_format)
    example = torch.zeros(_EXAMPLE_BATCH, spec.channels, spec.height, spec.width)
    facts = {
        **{key.removeprefix(onnx.PREFIX): value for key, value in metadata.items()},
        "params": str(count_parameters(network)),
        "macs": str(count_macs(network, spec.channels, spec.height, spec.width)),
        _BACKBONE: json.dumps(not task.has_classes),
    }
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    try:
        with _quietly():
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
            methods = {_OWN: json.dumps(facts, sort_keys=True)}
            lowered = lower(program, partitioner=[partitioner()], constant_methods=methods).to_executorch()
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError) as error:
        # None of what its passes raise is documented; it is the network that they stumble over.
        first = str(error).strip().split("\n", 1)[0]
        raise NetworkError(
            f"{type(network).__name__}: cannot be lowered to ExecuTorch ({type(error).__name__}: {first})"
        ) from error
    write_bytes(path, lowered.buffer)


def open_(path: Path, threads: int = 1) -> ExecuTorchModel:
    """Opens the file in ExecuTorch's own runtime, on the CPU.

    Args:
        path: The file.
        threads: Threads of its pool, which the whole process shares.

    Raises:
        UserError: ExecuTorch is not installed, or the file cannot be read or is no network of images.
    """
    return ExecuTorchModel(Path(path), threads)


def gates(file: ExecuTorchModel, opset: int | None) -> list[Gate]:
    """Checks the file itself: `executorch_no_paths` and `executorch_batch`.

    Args:
        file: Opened.
        opset: ONNX opset; not used here.
    """
    facts = [value for key, value in file.metadata.items() if key != onnx.PREFIX + "labels"]
    leaks = list(dict.fromkeys([*folders_in(file.content), *(text[:80] for text in facts if is_path(text))]))
    found = f"found: {'; '.join(leaks[:3])}" if leaks else "no folder of this machine named"
    return [
        equal("executorch_no_paths", len(leaks), 0, found),
        Gate(
            "executorch_batch",
            file.largest >= _LEAST,
            file.largest,
            _LEAST,
            "images that the file takes at once; limit: at least",
        ),
    ]


def describe(path: Path) -> dict[str, Any]:
    """Reads `params`, `macs` and `shape` of a program; one of other tools has its image size alone.

    Args:
        path: The file.
    """
    file = open_(path)
    known = {key: file.metadata.get(onnx.PREFIX + key) for key in ("params", "macs")}
    sizes = {
        key: int(value) if value is not None and value.isdecimal() else None for key, value in known.items()
    }
    return {**sizes, "shape": tuple(int(size) for size in file.input_shape[1:] if size is not None)}


class ExecuTorchModel:
    """Computes logits or features of images in [0, 1] through ExecuTorch.

    Args:
        path: The file.
        threads: Threads of the pool, which the whole process shares.

    Attributes:
        largest: Images that it takes at once; more are run one part after another.
        input_shape: ("batch", C, H, W).
        metadata: Same as in an ONNX file of the same network.
    """

    providers = ("xnnpack",)

    def __init__(self, path: Path, threads: int = 1) -> None:
        runtime = _imported("runtime").Runtime.get()
        self.path = path
        try:
            self.content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        _imported("extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
        try:
            self._program = runtime.load_program(self.content)
            self._method = self._program.load_method(_FORWARD)
            sizes = self._method.metadata.input_tensor_meta(0).sizes()
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"{path}: ExecuTorch cannot load it ({error})") from None
        if len(sizes) != 4:
            raise UserError(f"{path}: expected an input of four axes, as of an image classifier")
        self.largest = int(sizes[0])
        self.input_shape: tuple[int | str | None, ...] = ("batch", *map(int, sizes[1:]))
        facts: dict[str, str] = {}
        if _OWN in self._program.method_names:
            text = str(self._program.load_method(_OWN).execute([])[0])
            facts = parse_document(text, f"{path}: its facts", TypeAdapter(dict[str, str]))
        self.task = EMBEDDING if facts.pop(_BACKBONE, "false") == "true" else CLASSIFICATION
        self.metadata = {onnx.PREFIX + key: value for key, value in facts.items()}

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes outputs `[B, K]` of float32 images `[B, C, H, W]`.

        Raises:
            UserError: The file does not take images of this shape.
        """
        if images.shape[1:] != self.input_shape[1:]:
            # It would compute something.
            shape, own = ("×".join(map(str, sizes)) for sizes in (images.shape[1:], self.input_shape[1:]))
            raise UserError(f"{self.path}: fails on images of {shape}: it takes {own}")
        parts = []
        for part in torch.split(torch.from_numpy(images), self.largest):
            try:
                outputs = self._method.execute([part.contiguous()])[0]
            except RuntimeError as error:
                raise UserError(f"{self.path}: fails on {len(part)} images: {error}") from None
            parts.append(outputs.clone().numpy())  # the next call may use the memory
        return np.concatenate(parts)


def _imported(name: str) -> Any:
    """Imports a module of the package.

    Raises:
        UserError: It is not installed.
    """
    try:
        with _quietly():
            return importlib.import_module(f"{PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise
        raise UserError(
            "the format 'executorch' needs executorch: pip install 'kdcompress[executorch]'"
        ) from None


@contextmanager
def _quietly() -> Iterator[None]:
    # It and what it imports warn of their own deprecations and log what they did; the gates say what matters.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
