"""`student.image.onnx`: the network with all that lies between an upright image and its logits in the graph.

Its input is `images`, uint8 `[batch, height, width, channels]`: pixels as a decoder gives them, of any size
(all of one batch of the same), RGB or grey. The shorter side is resized, the centre cut out, and the values
are normalised as `student.onnx` does it.

Pillow resizes bytes in two passes, across and then down (of some tall images the other way round), and
rounds after each. So does this graph, with the triangle filter that Pillow calls bilinear; then next to no
pixel differs, and none by more than one 255th (the gates look). One `Resize` of floats would be off by that
much in a sixth of the pixels, and without antialias by up to 29.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.formats.onnx import INPUT, PREFIX
from kdcompress.deploy.graph_size import IMAGE_SHAPE
from kdcompress.errors import UserError

NAME = "student.image.onnx"
KEY = PREFIX + "image_input"
"""Of the metadata: the input contract, in JSON."""
_PREFIX = "preprocess/"
PIXELS = _PREFIX + "pixels"
"""The tensor that the network's images, before the division by 255, are in: `[batch, C, S, S]`."""

_SCALED = _PREFIX + "images"
_LARGEST = 255.0


def check_spec(spec: InputSpec, option: str) -> None:
    """Refuses what the graph cannot do as the evaluation does it.

    Args:
        spec: The network's input.
        option: Option or key that requested it, for messages.

    Raises:
        UserError: Another interpolation than bilinear, or images that are not square.
    """
    if spec.interpolation != "bilinear":
        raise UserError(
            f"{option}: the images are resized {spec.interpolation}, for which no ONNX operator gives the "
            "same pixels; resize before, and feed student.onnx"
        )
    if spec.height != spec.width or spec.crop not in {None, spec.height}:
        raise UserError(
            f"{option}: the network takes images of {spec.height}×{spec.width} pixels, and only the central "
            "square is cut in the graph; crop before, and feed student.onnx"
        )


def short_side(spec: InputSpec) -> int:
    """Pixels that the shorter side is resized to; of data that comes in the network's size, that size."""
    return spec.resize or spec.height


def with_preprocessing(model: ModelProto, spec: InputSpec, typical: tuple[int, int]) -> ModelProto:
    """The graph of `student.onnx` behind resize, crop and division by 255.

    Args:
        model: `student.onnx`, of opset 18 or newer; it is not changed.
        spec: Its input, which `check_spec` has let pass.
        typical: (H, W) of the images it is for, for whoever times the file.
    """
    whole = ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == INPUT:
                node.input[place] = _SCALED
    nodes, constants = _preprocessing(spec)
    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *network])
    graph.initializer.extend(constants)
    del graph.input[:]
    shape = ["batch", "height", "width", spec.channels]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    facts = {entry.key: entry.value for entry in model.metadata_props}
    facts[PREFIX + "normalisation"] = "in the graph, after resize and crop: uint8 images as they are decoded"
    facts[KEY] = json.dumps(contract(spec, typical))
    del whole.metadata_props[:]
    helper.set_model_props(whole, dict(sorted(facts.items())))
    return whole


def contract(spec: InputSpec, typical: tuple[int, int]) -> dict[str, Any]:
    """Describes the input in the file's metadata."""
    return {
        "dtype": "uint8",
        "layout": "NHWC",
        "channels": "RGB" if spec.channels == 3 else "grey",
        "upright": True,
        "resize": short_side(spec),
        "crop": spec.height,
        "interpolation": spec.interpolation,
        "antialias": True,
        "rounded": True,
        "typical": list(typical),
    }


def contract_of(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    """Reads such an input from a file's metadata; None: it takes images in [0, 1].

    Raises:
        UserError: It is damaged.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        facts = json.loads(text)
        assert isinstance(facts, dict)
        height, width = facts["typical"]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path}: {KEY} in its metadata is damaged") from None
    return {**facts, "typical": (int(height), int(width))}


def _preprocessing(spec: InputSpec) -> tuple[list[NodeProto], list[TensorProto]]:
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []

    def named(name: str) -> str:
        return _PREFIX + name

    def constant(name: str, value: object, dtype: type = np.int64) -> str:
        constants.append(numpy_helper.from_array(np.array(value, dtype), named(name)))
        return named(name)

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [named(output)], named(output), **attributes))
        return named(output)

    side = spec.height
    short, crop = constant("short_side", [short_side(spec)]), constant("side", [side])
    two, half = constant("two", [2]), constant("half", 0.5, np.float32)
    own = {
        "height": node("Shape", [INPUT], "height", start=1, end=2),
        "width": node("Shape", [INPUT], "width", start=2, end=3),
    }
    shorter = node("Min", [own["height"], own["width"]], "shorter")
    size, first = {}, {}
    for axis, length in own.items():
        # Whole numbers, as the evaluation has it: the product first, rounded down, and never below the crop.
        product = node("Mul", [length, short], f"{axis}_product")
        scaled = node("Div", [product, shorter], f"{axis}_scaled")
        size[axis] = node("Max", [scaled, crop], f"{axis}_resized")
        # Python's round of half the margin: to the even one of two that are equally near.
        margin = node("Sub", [size[axis], crop], f"{axis}_margin")
        down = node("Div", [margin, two], f"{axis}_down")
        odd = node("Mul", [node("Mod", [margin, two], f"{axis}_odd"), node("Mod", [down, two], f"{axis}_up")],
                   f"{axis}_more")  # fmt: skip
        first[axis] = node("Add", [down, odd], f"{axis}_first")
    planes = node("Transpose", [INPUT], "planes", perm=[0, 3, 1, 2])
    floats = node("Cast", [planes], "floats", to=TensorProto.FLOAT)
    count = node("Shape", [planes], "count", start=0, end=2)
    done = floats
    for name, height in (("across", own["height"]), ("down", size["height"])):
        sizes = node("Concat", [count, height, size["width"]], f"{name}_sizes", axis=0)
        # The filter ends at the image's border, where it is normalised anew.
        resized = node("Resize", [done, "", "", sizes], name, mode="linear", antialias=1, exclude_outside=1,
                       coordinate_transformation_mode="half_pixel")  # fmt: skip
        done = node("Floor", [node("Add", [resized, half], f"{name}_up")], f"{name}_rounded")
    starts = node("Concat", [first["height"], first["width"]], "starts", axis=0)
    ends = node("Add", [starts, crop], "ends")
    cut = node("Slice", [done, starts, ends, constant("axes", [2, 3])], "cut")
    # Says what size it has, which nobody could infer.
    shape = constant(IMAGE_SHAPE.removeprefix(_PREFIX), [0, spec.channels, side, side])
    node("Reshape", [cut, shape], PIXELS.removeprefix(_PREFIX))
    node("Div", [PIXELS, constant("largest", _LARGEST, np.float32)], _SCALED.removeprefix(_PREFIX))
    return nodes, constants


def serialised(model: ModelProto) -> bytes:
    """The bytes of a file; equal graphs give equal ones."""
    return bytes(model.SerializeToString(deterministic=True))


def with_pixels(model: ModelProto) -> bytes:
    """The same graph that also gives the images it makes, before they are divided by 255."""
    more = ModelProto()
    more.CopyFrom(model)
    more.graph.output.append(helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, None))
    return serialised(more)


def read(path: Path) -> ModelProto:
    """An ONNX file in one piece."""
    return onnx.load(path, load_external_data=False)
