"""Code that runs the shipped files, ready to copy, with this run's own sizes in it."""

from __future__ import annotations

from dataclasses import dataclass

from kdcompress.data.input_spec import InputSpec
from kdcompress.report.record import Record


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of Python.

    Args:
        title: Need of the example, in a few words.
        code: To be run in the run folder.
    """

    title: str
    code: str


def snippets(record: Record) -> list[Snippet]:
    """Returns one snippet per way to load the shipped files; empty without a `config.json`."""
    spec = record.input_spec
    if spec is None:
        return []
    result = []
    if record.has("student.onnx"):
        result.append(Snippet("onnxruntime (nothing else is needed)", _onnxruntime(record, spec)))
    if record.has("student.safetensors"):
        result.append(Snippet("kdcompress", _kdcompress(record, spec)))
        result.append(Snippet("plain PyTorch", _torch(record, spec)))
    return result


def preprocessing(spec: InputSpec) -> str:
    """Describes the way from an image file to the network's input."""
    colours = "grey, 1 channel" if spec.channels == 1 else "RGB, 3 channels"
    steps = [f"decode as {colours}"]
    if spec.fit == "pad":
        steps.append(f"resize the longer side to {spec.height} pixels ({spec.interpolation}, antialiased)")
        steps.append(f"put it in the middle of a square of the grey {spec.border}")
    elif spec.resize is not None:
        steps.append(f"resize the shorter side to {spec.resize} pixels ({spec.interpolation}, antialiased)")
    elif spec.fit == "whole":
        size = f"{spec.width}×{spec.height} pixels"
        steps.append(f"squeeze all of the picture to {size} ({spec.interpolation}, antialiased)")
    else:
        steps.append(f"resize to {spec.width}×{spec.height} pixels ({spec.interpolation}, antialiased)")
    if spec.crop is not None:
        steps.append(f"cut the central {spec.crop}×{spec.crop} pixels")
    steps.append("divide by 255")
    return "; ".join(steps)


def _images(spec: InputSpec) -> str:
    """Returns code that makes `images`, a float32 array [1, C, H, W] in [0, 1]."""
    mode, method = ("L" if spec.channels == 1 else "RGB"), spec.interpolation.upper()
    lines = [f'image = Image.open("image.jpg").convert("{mode}")']
    if spec.fit == "pad":
        side, grey = spec.height, spec.border
        colour = grey if spec.channels == 1 else (grey,) * spec.channels
        lines.append(f"size = [max(1, {side} * length // max(image.size)) for length in image.size]")
        lines.append(f"picture = image.resize(size, Image.{method})")
        lines.append(f'image = Image.new("{mode}", ({side}, {side}), {colour})')
        lines.append(f"image.paste(picture, (({side} - size[0]) // 2, ({side} - size[1]) // 2))")
    elif spec.resize is not None:
        lines.append(f"scale = {spec.resize} / min(image.size)")
        lines.append(f"image = image.resize([round(side * scale) for side in image.size], Image.{method})")
    elif spec.crop is None:
        lines.append(f"image = image.resize(({spec.width}, {spec.height}), Image.{method})")
    if spec.crop is not None:
        lines.append(f"left, top = (image.width - {spec.crop}) // 2, (image.height - {spec.crop}) // 2")
        lines.append(f"image = image.crop((left, top, left + {spec.crop}, top + {spec.crop}))")
    pixels = "np.asarray(image, np.float32)"
    axes = f"{pixels}[None, None]" if spec.channels == 1 else f"{pixels}.transpose(2, 0, 1)[None]"
    lines.append(f"images = {axes} / 255  # [1, {spec.channels}, {spec.height}, {spec.width}], 0 to 1")
    return "\n".join(lines)


def _onnxruntime(record: Record, spec: InputSpec) -> str:
    session = 'session = onnxruntime.InferenceSession("student.onnx")  # the normalisation is in the graph'
    if not record.task.has_classes:
        return f"""import numpy as np
import onnxruntime
from PIL import Image

{_images(spec)}

{session}
(embedding,) = session.run(["embedding"], {{"images": images}})
print(embedding / np.linalg.norm(embedding, axis=1, keepdims=True))"""
    return f"""import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

{_images(spec)}

{session}
(logits,) = session.run(["{record.task.output}"], {{"images": images}})
print(json.loads(Path("labels.json").read_text())[logits[0].argmax()])"""


def _kdcompress(record: Record, spec: InputSpec) -> str:
    return f"""import kdcompress
import numpy as np
import torch
from PIL import Image

{_images(spec)}

network, spec = kdcompress.load(".")  # in eval mode
mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
{_called(record)}"""


def _torch(record: Record, spec: InputSpec) -> str:
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (spec.mean, spec.std))
    imports, build = _construction(record, spec)
    return f"""import numpy as np
import safetensors.torch
import torch
from PIL import Image
{imports}

network = {build}
{_loaded(record)}
network.eval()

{_images(spec)}

mean = torch.tensor([{mean}]).view(1, -1, 1, 1)
std = torch.tensor([{std}]).view(1, -1, 1, 1)
{_called(record)}"""


def _loaded(record: Record) -> str:
    """Returns code that loads the weights into `network`."""
    if "/mnasnet" not in record.student:
        return 'network.load_state_dict(safetensors.torch.load_file("student.safetensors"), strict=True)'
    return """state = network.state_dict()  # with the version of the class, which it asks for
state.update(safetensors.torch.load_file("student.safetensors"))
network.load_state_dict(state, strict=True)"""


def _called(record: Record) -> str:
    """Returns code that runs `network` on `images`, normalised by `mean` and `std`."""
    name, shown = "logits", "logits.softmax(1)"
    if not record.task.has_classes:
        name, shown = "embedding", "torch.nn.functional.normalize(embedding)"
    return f"""with torch.inference_mode():
    {name} = network((torch.from_numpy(images) - mean) / std)
print({shown})"""


def _construction(record: Record, spec: InputSpec) -> tuple[str, str]:
    """Returns import, expression and following code of a new network of the student's class."""
    family, _, name = record.student.partition("/")
    classes = record.config["num_classes"]
    if family == "torchvision" and not record.task.has_classes:
        return "from torchvision.models import get_model", (
            f'get_model("{name}", num_classes=1)\n'
            "# A backbone: its last linear layer, the classifier, is left out.\n"
            "linear = [path for path, part in network.named_modules() if isinstance(part, torch.nn.Linear)]\n"
            "network.set_submodule(linear[-1], torch.nn.Identity())"
        )
    if family == "torchvision":
        return "from torchvision.models import get_model", f'get_model("{name}", num_classes={classes})'
    if family == "timm":
        channels = f", in_chans={spec.channels}" if spec.channels != 3 else ""
        return "import timm", f'timm.create_model("{name}", num_classes={classes}{channels})'
    arguments = f"num_classes={classes}, channels={spec.channels}, image_size=({spec.height}, {spec.width})"
    if record.student.startswith("python:"):
        _, module, function = record.student.split(":")
        return f"from {module} import {function}", f"{function}()  # with the arguments it takes: {arguments}"
    return "from kdcompress.networks.build import build", f'build(\n    "{record.student}", {arguments}\n)'
