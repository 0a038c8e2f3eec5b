"""Rules for each function that a network calls, so that it is rounded where onnxruntime rounds.

Whatever reads a tensor reads it rounded; what onnxruntime does in one operator is not rounded inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class Pass(TorchFunctionMode):
    """Sees every function of torch's that is called in its block, and lets the tensors be read."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        does = RULES.get(getattr(func, "__name__", ""))
        if does is None:
            return func(*args, **(kwargs or {}))
        return does(self, func, args, kwargs or {})

    def read(self, tensor: Tensor, function: str) -> Tensor:
        """Returns the tensor that a function reads in place of another."""
        raise NotImplementedError

    def requantise(self, tensor: Tensor) -> Tensor:
        """Rounds a tensor to the levels of the one that was read last."""
        return tensor

    def weight(self, weight: Tensor, axis: int | None) -> Tensor:
        """Returns the weight that a function uses in place of another."""
        return weight

    def bias(self, bias: Tensor | None, weight: Tensor, axis: int | None) -> Tensor | None:
        """Returns the bias that a layer adds in place of its own, once its input was read."""
        return bias

    def folds(self, tensor: Tensor) -> bool:
        """Tells if a batch norm that reads this is folded into the convolution before it."""
        raise NotImplementedError

    def shift(self, arguments: dict[str, Any]) -> Tensor | None:
        """Returns the bias that a batch norm adds if it is folded into the convolution before it."""
        bias: Tensor | None = arguments.get("bias")
        return bias

    def record_output(self, outputs: Any, *, by_layer: bool = False, levels: bool = False) -> None:
        """Records the outputs of a function: a layer's, or levels of its input."""

    def copy_scale(self, source: Tensor, output: Tensor) -> None:
        """Records that an output has the scale of its source."""


Rule = Callable[[Pass, Any, tuple[Any, ...], dict[str, Any]], Any]


def _read_all(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handles an operator whose operands are all rounded."""
    func = _NOT_IN_PLACE.get(func.__name__, func)

    def read(value: Any) -> Any:
        numbers = isinstance(value, Tensor) and value.is_floating_point()
        return this.read(value, func.__name__) if numbers else value

    return func(*tree_map(read, args), **tree_map(read, kwargs))


def _joined(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handles a concatenation; of one tensor alone it is left out of the exported graph."""
    tensors = args[0] if args else kwargs["tensors"]
    if len(tensors) > 1:
        return _read_all(this, func, args, kwargs)
    output = func(*args, **kwargs)
    this.copy_scale(tensors[0], output)
    return output


def _read_first(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handles an operator that reads one tensor and has settings."""
    tensor, rest, kwargs = _operand(args, kwargs)
    return func(this.read(tensor, func.__name__), *rest, **kwargs)


def _keeps_scale(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handles an operator that selects or moves values: its output has its input's levels."""
    tensor, rest, kwargs = _operand(args, kwargs)
    if not tensor.is_floating_point():
        return func(tensor, *rest, **kwargs)
    outputs = func(this.read(tensor, func.__name__), *rest, **kwargs)
    this.record_output(outputs, levels=True)
    return outputs


def _same_levels(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handles an operator whose output has the levels of its input."""
    tensor, rest, kwargs = _operand(args, kwargs)
    output = this.requantise(func(this.read(tensor, func.__name__), *rest, **kwargs))
    this.record_output(output, levels=True)
    return output


def _fused_into_producer(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handles an activation that is fused into the rounding of its output, or a copy."""
    source = args[0] if args else kwargs["input"]
    output = func(*args, **kwargs)
    this.copy_scale(source, output)
    return output


def _convolution(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, rest, kwargs = _operand(args, kwargs)
    weight, rest, kwargs = _operand(rest, kwargs, "weight")
    axis = 1 if "transpose" in func.__name__ else 0
    bias, rest, kwargs = _operand(rest, kwargs, "bias")
    read = this.read(tensor, func.__name__)
    output = func(read, this.weight(weight, axis), this.bias(bias, weight, axis), *rest, **kwargs)
    this.record_output(output, by_layer=True)
    return output


def _linear(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    arguments = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    bias = arguments.get("bias")
    read, weight = this.read(arguments["input"], "linear"), this.weight(arguments["weight"], 0)
    if read.ndim == 2 or bias is None:
        bias = this.bias(bias, arguments["weight"], 0)
        output = F.linear(read, weight, bias)
        this.record_output(output, by_layer=True)
        return output
    # On more than a vector for each image, it is a product and a sum, and the product is rounded.
    product = F.linear(read, weight)
    this.record_output(product, by_layer=True)
    return this.read(product, "product") + this.read(bias, "bias")


def _matrix_product(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    output = _read_all(this, func, args, kwargs)
    this.record_output(output, by_layer=True)
    return output


def _batch_norm(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    arguments = dict(zip(names, args, strict=False)) | kwargs
    if this.folds(arguments["input"]):
        arguments["bias"] = this.shift(arguments)
    else:
        arguments["input"] = this.read(arguments["input"], "batch_norm")
        if arguments.get("weight") is not None:
            arguments["bias"] = this.bias(arguments.get("bias"), arguments["weight"], None)
            arguments["weight"] = this.weight(arguments["weight"], None)
    return func(**arguments)


def _layer_norm(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    arguments = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | kwargs
    arguments["input"] = this.read(arguments["input"], "layer_norm")
    if arguments.get("weight") is not None:
        arguments["bias"] = this.bias(arguments.get("bias"), arguments["weight"], None)
        arguments["weight"] = this.weight(arguments["weight"], None)
    return func(**arguments)


def _gated(gate: Callable[[Tensor], Tensor]) -> Rule:
    """Handles an activation that is exported as x · gate(x), with a rounding between the two."""

    def does(this: Pass, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor, _, _ = _operand(args, kwargs)
        read = this.read(tensor, func.__name__)
        return read * this.read(gate(read), "gate")

    return does


def _operand(
    args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "input"
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Returns a tensor passed by position or by name, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs.get(name), args, {key: value for key, value in kwargs.items() if key != name}


_NOT_IN_PLACE: dict[str, Any] = {
    # What is rounded for one reader must not be overwritten for the others.
    "__iadd__": torch.add, "add_": torch.add, "__imul__": torch.mul, "mul_": torch.mul,
    "__isub__": torch.sub, "sub_": torch.sub, "__itruediv__": torch.div, "div_": torch.div,
    "sigmoid_": torch.sigmoid, "leaky_relu_": F.leaky_relu, "elu_": F.elu, "celu_": F.celu,
}  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        _convolution,
    ),
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm", "einsum"), _matrix_product),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "hardswish": _gated(F.hardsigmoid),
    "hardswish_": _gated(F.hardsigmoid),
    "silu": _gated(torch.sigmoid),
    "silu_": _gated(torch.sigmoid),
    **dict.fromkeys(
        (
            "add", "add_", "__add__", "__radd__", "__iadd__",
            "sub", "sub_", "__sub__", "__rsub__", "__isub__",
            "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__",
            "stack",
        ),
        _read_all,
    ),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    **dict.fromkeys(
        (
            "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "sum", "sigmoid",
            "sigmoid_", "hardsigmoid", "hardsigmoid_", "gelu", "elu", "elu_", "selu", "celu", "leaky_relu",
            "leaky_relu_", "prelu", "mish", "softplus", "tanh", "softmax", "group_norm", "instance_norm",
        ),
        _read_first,
    ),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _same_levels),
    **dict.fromkeys(
        (
            "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "flatten", "unflatten", "view",
            "reshape", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze", "chunk",
            "split", "tensor_split", "__getitem__", "narrow", "select", "expand", "roll", "pad",
            "interpolate", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle",
        ),
        _keeps_scale,
    ),
    **dict.fromkeys(
        (
            "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "clip_", "dropout",
            "dropout_", "dropout2d", "feature_dropout", "contiguous", "clone", "detach", "to", "float",
        ),
        _fused_into_producer,
    ),
}  # fmt: skip
"""Rule of each torch function, by its name; any other is called unchanged."""
