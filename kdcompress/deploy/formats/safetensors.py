"""safetensors: the plain network's tensors, loadable with `strict=True` into its family's own class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from kdcompress.atomic import write_bytes
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.config import NAME, DeployedConfig, read_config
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.strip import plain_student
from kdcompress.errors import UserError, WeightsError
from kdcompress.native_paths import utf8_path
from kdcompress.networks.read_checkpoint import check_plain
from kdcompress.tasks import CLASSIFICATION, Task, task_of

SUFFIX = ".safetensors"
TITLE = "PyTorch"
RUNTIME = "torch"

METADATA = {"format": "pt"}
"""One key only: safetensors writes several in random order, and equal weights shall give equal bytes."""


def write(
    network: nn.Module,
    spec: InputSpec,
    path: Path,
    *,
    metadata: dict[str, str],
    opset: int | None = None,
    task: Task = CLASSIFICATION,
) -> None:
    """Writes the network's tensors: CPU, contiguous, floats as float32, integers as they are.

    Args:
        network: The plain network.
        spec: Not in this file; it goes into the `config.json` beside it, as does `metadata`'s substance.
        path: Destination.
        metadata: See `spec`.
        opset: ONNX opset; not used here.
        task: Stands in the `config.json`, whose classes say it.

    Raises:
        WorldError: The disk is full or fails.
    """
    write_tensors(network, path)


def write_tensors(network: nn.Module, path: Path) -> None:
    """Writes the tensors of a network and nothing else; equal weights give equal bytes.

    Raises:
        UserError: The folder does not exist or must not be written to.
        WorldError: The disk is full or fails.
    """
    tensors = {key: _plain(tensor) for key, tensor in network.state_dict().items()}
    write_bytes(path, safetensors.torch.save(tensors, METADATA))


def open_(path: Path, threads: int = 1, *, allow_code: bool = False) -> SafetensorsModel:
    """Opens the file's network, rebuilt from the `config.json` beside it and ready to run.

    Args:
        path: The file.
        threads: Torch's threads while it runs.
        allow_code: True: a `python:` network may be built.

    Raises:
        UserError: The file or its config cannot be read or do not fit together.
    """
    network, config = read(path, allow_code=allow_code)
    deployed = Deployed(network, config.spec)
    deployed.eval()
    return SafetensorsModel(deployed, config, threads)


def read(path: Path, *, allow_code: bool = False) -> tuple[nn.Module, DeployedConfig]:
    """Loads the plain network in eval mode and its config.

    Raises:
        UserError: The file or its config cannot be read or do not fit together.
    """
    config = read_config(path.with_name(NAME))
    network = plain_student(
        tensors_of(path),
        config.model,
        num_classes=config.num_classes,
        channels=config.spec.channels,
        image_size=(config.spec.height, config.spec.width),
        allow_code=allow_code,
    )
    return network, config


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Reads the file's tensors.

    Raises:
        UserError: There is no such file.
        WeightsError: It is no safetensors file, or damaged.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: cannot be read: it is no regular file")
    try:
        with utf8_path(path) as place:
            tensors = safetensors.torch.load_file(place)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise WeightsError(f"{path}: is not a whole safetensors file ({error})") from None
    check_plain(tensors, str(path))
    return tensors


class SafetensorsModel:
    """Computes logits or features of images in [0, 1] through torch.

    Args:
        module: With its normalisation.
        config: Config beside the file.
        threads: Torch's threads while it runs.
    """

    providers = ("torch",)

    def __init__(self, module: Deployed, config: DeployedConfig, threads: int) -> None:
        self.module = module
        self.config = config
        self.threads = threads

    @property
    def task(self) -> Task:
        """Returns the kind of its outputs."""
        return task_of(self.config.num_classes, self.config.task)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes outputs `[B, K]` of float32 images `[B, C, H, W]`."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)  # of the whole process, hence given back
        try:
            return self.module.run(images)
        finally:
            torch.set_num_threads(before)


def _plain(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    # A copy of its own: safetensors refuses tensors that share memory, and strict loading wants every key.
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
