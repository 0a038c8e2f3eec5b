"""`kdcompress.load`: a shipped network, ready for inference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.errors import UserError

WEIGHTS = "student.safetensors"
GRAPH = "student.onnx"


def load(
    run_or_file: str | Path, *, threads: int | None = None, allow_code: bool = False
) -> tuple[nn.Module, InputSpec]:
    """A shipped network in eval mode, and what it expects of its input.

    Args:
        run_or_file: A run folder, a `.safetensors` with its `config.json` beside it, or a `.onnx`.
        threads: Of onnxruntime; None: as many as torch uses. The threads of torch are left as they are.
        allow_code: Whether a `python:` network, which runs the user's code, may be built.

    Returns:
        The plain network, which takes normalised images `[B, C, H, W]` and gives logits `[B, K]` (a backbone:
        features `[B, D]`), with its input specification: subtract `mean`, divide by `std`. A `.onnx` has the
        normalisation in its graph; its specification then says mean 0 and std 1, so that the same code
        serves both.

    Raises:
        UserError: There is nothing to load there, or it is damaged.
    """
    path = _artefact(Path(run_or_file))
    if path.suffix == onnx.SUFFIX:
        network = OnnxNetwork(path, threads or torch.get_num_threads())
        return network.eval(), network.spec
    plain, config = safetensors.read(path, allow_code=allow_code)
    return plain, config.spec


class OnnxNetwork(nn.Module):
    """An ONNX file as a module: images in [0, 1] to logits or features, on the CPU, without gradients.

    Args:
        path: The file.
        threads: Within one operator.

    Raises:
        UserError: It cannot be loaded, or is no image classifier.
    """

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        self.file = onnx.open_(path, threads)
        self.spec = spec_of(self.file)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs `[B, K]` of images `[B, C, H, W]` in [0, 1], on the images' device."""
        array = np.ascontiguousarray(images.detach().to("cpu", torch.float32).numpy())
        return torch.from_numpy(self.file(array)).to(images.device)


def spec_of(file: onnx.OnnxModel) -> InputSpec:
    """The input of an ONNX file: mean 0 and std 1, the rest from its metadata, else from its input's shape.

    Raises:
        UserError: Neither says the image size.
    """
    text = file.metadata.get(onnx.PREFIX + "input")
    if text is not None:
        try:
            document = json.loads(text)
            channels = int(document["channels"])
            zeros, ones = (0.0,) * channels, (1.0,) * channels
            return InputSpec.from_json({**document, "mean": zeros, "std": ones})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file.path}: kdcompress.input in its metadata is damaged ({error})") from None
    _, channels_, height, width = file.input_shape
    if not (isinstance(channels_, int) and isinstance(height, int) and isinstance(width, int)):
        raise UserError(f"{file.path}: neither its metadata nor its input's shape says the image size")
    return InputSpec(channels_, height, width, (0.0,) * channels_, (1.0,) * channels_)


def _artefact(path: Path) -> Path:
    """The file that is meant; a run folder's weights go before its graph."""
    if path.is_dir():
        for name in (WEIGHTS, GRAPH):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: holds neither {WEIGHTS} nor {GRAPH}, so it is no finished run")
    if path.suffix not in {onnx.SUFFIX, safetensors.SUFFIX}:
        raise UserError(f"{path}: expected a run folder, a .safetensors or a .onnx file")
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return path
