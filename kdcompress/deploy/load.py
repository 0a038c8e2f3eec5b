"""`kdcompress.load`: a shipped network, ready for inference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompress import discovery
from kdcompress.archives import reason_of
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.files import format_of, formats
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.deploy.image_graph import contract_of
from kdcompress.documents import check_document, parse_json
from kdcompress.errors import UserError
from kdcompress.plain_text import shortened
from kdcompress.schemas.config import MOST_CHANNELS, MOST_NUMBERS, InputObject
from kdcompress.tasks import Task

WEIGHTS = "student.safetensors"
GRAPH = "student.onnx"


def load(
    run_or_file: str | Path, *, threads: int | None = None, allow_code: bool = False
) -> tuple[nn.Module, InputSpec]:
    """Loads a shipped network in eval mode and its input specification.

    Args:
        run_or_file: A run folder, a `.safetensors` with its `config.json` beside it, a `.onnx`, the `.xml`
            of OpenVINO or the `.pte` of ExecuTorch.
        threads: Threads of its runtime; None: as many as torch uses. The threads of torch are left as
            they are.
        allow_code: True: a `python:` network, which runs the user's code, may be built.

    Returns:
        The plain network, which takes normalised images `[B, C, H, W]` and gives logits `[B, K]` (a backbone:
        features `[B, D]`), with its input specification: subtract `mean`, divide by `std`. Any other
        file has the normalisation in its graph; its specification then says mean 0 and std 1, so that the
        same code serves all.

    Raises:
        UserError: There is nothing to load there, or it is damaged.
    """
    path = _artefact(Path(run_or_file))
    if path.suffix != safetensors.SUFFIX:
        network = GraphNetwork(open_graph(path, threads or torch.get_num_threads()))
        return network.eval(), network.spec
    plain, config = safetensors.read(path, allow_code=allow_code)
    return plain, config.spec


class Graph(Protocol):
    """An opened file with the normalisation in it, as a format's `open_` returns it."""

    path: Path
    task: Task
    input_shape: tuple[int | str | None, ...]

    @property
    def metadata(self) -> dict[str, str]:
        """Returns the entries under `kdcompress.*`."""

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes outputs of images `[B, C, H, W]` in [0, 1]."""


def open_graph(path: Path, threads: int = 1) -> Graph:
    """Opens a file of any format but safetensors in its runtime.

    Args:
        path: The file.
        threads: Threads of the runtime.

    Raises:
        UserError: It cannot be loaded, is no image classifier, or its runtime is not installed.
    """
    opened: Graph = discovery.load("format", format_of(path) or "onnx").open_(path, threads)
    return opened


class GraphNetwork(nn.Module):
    """Such a file as a module: images in [0, 1] to logits or features, on the CPU, without gradients.

    Args:
        file: Result of `open_graph`.

    Raises:
        UserError: It does not say its image size.
    """

    def __init__(self, file: Graph) -> None:
        super().__init__()
        self.file = file
        self.spec = spec_of(file)

    def forward(self, images: Tensor) -> Tensor:
        """Computes outputs `[B, K]` of images `[B, C, H, W]` in [0, 1], on the images' device."""
        array = np.ascontiguousarray(images.detach().to("cpu", torch.float32).numpy())
        return torch.from_numpy(self.file(array)).to(images.device)


def spec_of(file: Graph) -> InputSpec:
    """Reads an opened file's input specification: mean 0, std 1, sizes from its metadata or its input shape.

    Raises:
        UserError: Neither says the image size.
    """
    if contract_of(file.metadata, file.path) is not None:
        raise UserError(
            f"{file.path}: takes images as they are decoded, of any size and in bytes; here they come "
            f"resized, so name {GRAPH}"
        )
    text = file.metadata.get(onnx.PREFIX + "input")
    _, channels_, height, width = file.input_shape
    if text is not None:
        spec = input_in_metadata(text, file.path)
        said, own = (spec.channels, spec.height, spec.width), (channels_, height, width)
        if any(isinstance(size, int) and size != other for size, other in zip(own, said, strict=True)):
            raise UserError(
                f"{file.path}: is damaged: its metadata says images of {'×'.join(map(str, said))}, its graph "
                f"takes {'×'.join(map(str, own))}"
            )
        return spec
    if not (isinstance(channels_, int) and isinstance(height, int) and isinstance(width, int)):
        raise UserError(
            f"{file.path}: neither its metadata nor its input's shape says the image size; export it with a "
            "fixed image size"
        )
    check_size((channels_, height, width), file.path)
    return InputSpec(channels_, height, width, (0.0,) * channels_, (1.0,) * channels_)


def check_size(shape: tuple[int, int, int], path: Path) -> None:
    """Refuses images (C, H, W) that no machine should be asked to compute because a file says so.

    Raises:
        UserError: They have more than `MOST_NUMBERS` numbers.
    """
    if math.prod(shape) > MOST_NUMBERS:
        size = "×".join(map(str, shape))
        raise UserError(f"{path}: takes images of {size}, and more than {MOST_NUMBERS:,} numbers are refused")


def input_in_metadata(text: str, path: Path) -> InputSpec:
    """Reads `kdcompress.input` of a file with the normalisation in it, so with mean 0 and std 1.

    Args:
        text: The entry of its metadata.
        path: The file, for messages.

    Raises:
        UserError: It is damaged.
    """
    where = f"{path}: kdcompress.input in its metadata"
    document = parse_json(text, where)
    channels = document.get("channels") if isinstance(document, dict) else None
    if isinstance(channels, int) and 0 < channels <= MOST_CHANNELS:
        document = {**document, "mean": [0.0] * channels, "std": [1.0] * channels}
    check_document(document, where, InputObject)
    return InputSpec.from_json(document)


def _artefact(path: Path) -> Path:
    """Finds the file to load; of a run folder the weights, else the graph."""
    try:
        is_folder = path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{shortened(str(path))}: {reason_of(error)}") from None
    if is_folder:
        for name in (WEIGHTS, GRAPH):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: holds neither {WEIGHTS} nor {GRAPH}, so it is no finished run")
    if format_of(path) is None:
        suffixes = ", ".join(known.suffix for known in formats())
        raise UserError(f"{path}: expected a run folder, or a file that ends in one of {suffixes}")
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return path
