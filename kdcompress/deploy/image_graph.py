"""`student.image.onnx`: the network with all that lies between an upright image and its logits in the graph.

Its input is `images`, uint8 `[batch, height, width, channels]`: pixels as a decoder gives them, of any size
(all of one batch of the same), RGB or grey. They are made square as the evaluation does it (`InputSpec.fit`:
resized and the centre cut out, or whole), and the values are normalised as `student.onnx` does it.

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
from kdcompress.documents import parse_document
from kdcompress.errors import UserError
from kdcompress.schemas.config import GraphImages

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
    """Returns the pixels that the shorter side is resized to; without a resize, the network's size."""
    return spec.resize or spec.height


def with_preprocessing(model: ModelProto, spec: InputSpec, typical: tuple[int, int]) -> ModelProto:
    """Puts resize, crop and division by 255 before the graph of `student.onnx`.

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
    square = "resize and crop" if spec.fit == "crop" else "the images are made square"
    facts[PREFIX + "normalisation"] = f"in the graph, after {square}: uint8 images as they are decoded"
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
        **({"resize": short_side(spec), "crop": spec.height} if spec.fit == "crop" else _whole(spec)),
        "interpolation": spec.interpolation,
        "antialias": True,
        "rounded": True,
        "typical": list(typical),
    }


def _whole(spec: InputSpec) -> dict[str, Any]:
    return {"fit": spec.fit, "side": spec.height, **({"border": spec.border} if spec.fit == "pad" else {})}


def contract_of(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    """Reads such an input from a file's metadata; None: it takes images in [0, 1].

    Raises:
        UserError: It is damaged.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    facts = parse_document(text, f"{path}: {KEY} in its metadata", GraphImages)
    return {**facts, "typical": tuple(facts["typical"])}


class _Preprocessing:
    """Nodes and constants in front of the network, as they are added.

    Args:
        spec: The network's input.
    """

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: object, dtype: type = np.int64) -> str:
        """Adds a constant and returns its name."""
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), _PREFIX + name))
        return _PREFIX + name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Adds a node and returns the name of its output."""
        name = _PREFIX + output
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def cropped(
        self, input_sizes: dict[str, str], side: str, two: str, short: str
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Computes the size after the resize, and the first row and column of the centre, by axis."""
        node, resized_sizes, crop_starts = self.node, {}, {}
        shorter = node("Min", list(input_sizes.values()), "shorter")
        for axis, length in input_sizes.items():
            # Whole numbers, as the evaluation has it: the product first, rounded down, and never below the
            # crop.
            product = node("Mul", [length, short], f"{axis}_product")
            scaled = node("Div", [product, shorter], f"{axis}_scaled")
            resized_sizes[axis] = node("Max", [scaled, side], f"{axis}_resized")
            # Python's round of half the margin: to the even one of two that are equally near.
            margin = node("Sub", [resized_sizes[axis], side], f"{axis}_margin")
            down = node("Div", [margin, two], f"{axis}_down")
            odd = [node("Mod", [margin, two], f"{axis}_odd"), node("Mod", [down, two], f"{axis}_up")]
            crop_starts[axis] = node("Add", [down, node("Mul", odd, f"{axis}_more")], f"{axis}_first")
        return resized_sizes, crop_starts

    def on_border(
        self, input_sizes: dict[str, str], side: str, two: str
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Computes the size after the resize, and the border before the picture, by axis."""
        node, resized_sizes, border_sizes = self.node, {}, {}
        one, longer = self.constant("one", [1]), node("Max", list(input_sizes.values()), "longer")
        for axis, length in input_sizes.items():
            scaled = node("Div", [node("Mul", [length, side], f"{axis}_product"), longer], f"{axis}_scaled")
            resized_sizes[axis] = node("Max", [scaled, one], f"{axis}_resized")
            margin = node("Sub", [side, resized_sizes[axis]], f"{axis}_margin")
            border_sizes[axis] = node("Div", [margin, two], f"{axis}_first")
        return resized_sizes, border_sizes

    def resized(self, input_sizes: dict[str, str], resized_sizes: dict[str, str], half: str) -> str:
        """Resizes as Pillow does, across and then down, rounded after each."""
        node = self.node
        planes = node("Transpose", [INPUT], "planes", perm=[0, 3, 1, 2])
        pixels = node("Cast", [planes], "floats", to=TensorProto.FLOAT)
        count = node("Shape", [planes], "count", start=0, end=2)
        for name, height in (("across", input_sizes["height"]), ("down", resized_sizes["height"])):
            sizes = node("Concat", [count, height, resized_sizes["width"]], f"{name}_sizes", axis=0)
            # The filter ends at the image's border, where it is normalised anew.
            part = node("Resize", [pixels, "", "", sizes], name, mode="linear", antialias=1,
                        exclude_outside=1, coordinate_transformation_mode="half_pixel")  # fmt: skip
            pixels = node("Floor", [node("Add", [part, half], f"{name}_up")], f"{name}_rounded")
        return pixels


def _preprocessing(spec: InputSpec) -> tuple[list[NodeProto], list[TensorProto]]:
    made = _Preprocessing(spec)
    node, constant, side = made.node, made.constant, spec.height
    short = constant("short_side", [short_side(spec)]) if spec.fit == "crop" else ""
    square = constant("side", [side])
    two, half = constant("two", [2]), constant("half", 0.5, np.float32)
    input_sizes = {
        "height": node("Shape", [INPUT], "height", start=1, end=2),
        "width": node("Shape", [INPUT], "width", start=2, end=3),
    }
    resized_sizes, first_positions = dict.fromkeys(input_sizes, square), dict[str, str]()
    if spec.fit == "crop":
        resized_sizes, first_positions = made.cropped(input_sizes, square, two, short)
    elif spec.fit == "pad":
        resized_sizes, first_positions = made.on_border(input_sizes, square, two)
    pixels = made.resized(input_sizes, resized_sizes, half)
    if spec.fit != "whole":
        starts = node("Concat", [first_positions["height"], first_positions["width"]], "starts", axis=0)
    if spec.fit == "crop":
        ends = node("Add", [starts, square], "ends")
        pixels = node("Slice", [pixels, starts, ends, constant("axes", [2, 3])], "cut")
    elif spec.fit == "pad":
        sizes = node("Concat", [resized_sizes["height"], resized_sizes["width"]], "sizes", axis=0)
        after = node("Sub", [node("Sub", [square, sizes], "borders"), starts], "after")
        pads, grey = (
            node("Concat", [starts, after], "pads", axis=0),
            constant("grey", spec.border, np.float32),
        )
        pixels = node("Pad", [pixels, pads, grey, constant("axes", [2, 3])], "on_border")
    # Says what size it has, which nobody could infer.
    shape = constant(IMAGE_SHAPE.removeprefix(_PREFIX), [0, spec.channels, side, side])
    node("Reshape", [pixels, shape], PIXELS.removeprefix(_PREFIX))
    node("Div", [PIXELS, constant("largest", _LARGEST, np.float32)], _SCALED.removeprefix(_PREFIX))
    return made.nodes, made.constants


def serialised(model: ModelProto) -> bytes:
    """Returns the bytes of a file; equal graphs give equal ones."""
    return bytes(model.SerializeToString(deterministic=True))


def with_pixels(model: ModelProto) -> bytes:
    """Adds the images before their division by 255 to the graph's outputs; returns its bytes."""
    more = ModelProto()
    more.CopyFrom(model)
    more.graph.output.append(helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, None))
    return serialised(more)


def read(path: Path) -> ModelProto:
    """Reads an ONNX file in one piece."""
    return onnx.load(path, load_external_data=False)
