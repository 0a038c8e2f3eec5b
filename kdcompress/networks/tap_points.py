"""Finding the tap points of a network: classifier, stages, and the maps before their last activation.

Found in a recorded pass, without a table of architectures. A stage is the last map of one resolution that
everything passes through, as seen from outside the blocks: `layer2`, not a convolution inside the block
that down-samples after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from kdcompress.errors import NetworkError, suggest
from kdcompress.networks.trace import Call, Trace
from kdcompress.tasks import CLASSIFICATION, Task


@dataclass(frozen=True, slots=True)
class Tap:
    """One reading.

    Args:
        path: Path of the module, as in `named_modules`.
        call: Number of the module's call in one pass, from 0.
        side: Its first input before the call, or its output after it.
        clone: True if a later in-place operation rewrites the tensor, so that the reading must be a copy.
    """

    path: str
    call: int
    side: Literal["input", "output"]
    clone: bool


@dataclass(frozen=True, slots=True)
class Taps:
    """All readings of one network.

    Args:
        classifier: Reads the pooled features; None if no linear layer gives the logits, and of a backbone.
        stages: Shallow to deep, "stage1" first.
        pre: For every stage, the map before its last activation function; the stage's own tap where there
            is none.
    """

    classifier: Tap | None = None
    stages: dict[str, Tap] = field(default_factory=dict)
    pre: dict[str, Tap] = field(default_factory=dict)


def find_taps(
    trace: Trace,
    network: nn.Module,
    model: str,
    named: Mapping[str, str] | None = None,
    *,
    task: Task = CLASSIFICATION,
) -> Taps:
    """Finds the taps of a network.

    Args:
        trace: A pass at the image size the network will see.
        network: The traced network.
        model: Named in errors.
        named: `{"stage1": module path, ..., "classifier": module path}`. Stages named here replace all
            found ones. Of a module that is called several times the last call is read.
        task: Task of the network; without classes, no layer is the classifier.

    Raises:
        NetworkError: A named tap does not exist or is no map.
    """
    named = dict(named or {})
    if not task.has_classes and "classifier" in named:
        raise NetworkError(f"{model}: taps.classifier: is a backbone here, built without its classifier")
    _check_names(named, network, model)
    classifier = _named_call(trace, named.pop("classifier"), model) if "classifier" in named else None
    classifier = classifier or (_classifier(trace) if task.has_classes else None)
    if named:
        calls = {name: _named_call(trace, named[name], model) for name in sorted(named, key=_stage_number)}
        for name, call in calls.items():
            _check_map(trace, name, call, model)
    else:
        calls = {f"stage{number}": call for number, call in enumerate(_stages(trace), start=1)}
    stages = {name: _output(call) for name, call in calls.items()}
    pre = {name: _before_activation(trace, call) or stages[name] for name, call in calls.items()}
    return Taps(None if classifier is None else _input(classifier), stages, pre)


def retarget(trace: Trace, taps: Taps) -> Taps:
    """Finds the same taps in another network of the same modules; in-place hazards are found anew.

    Args:
        trace: A pass of the other network.
        taps: Found in the first one.
    """
    calls = {(call.path, call.number): call for call in trace.calls}

    def same(tap: Tap) -> Tap:
        call = calls[tap.path, tap.call]
        return _input(call) if tap.side == "input" else _output(call)

    return Taps(
        None if taps.classifier is None else same(taps.classifier),
        {name: same(tap) for name, tap in taps.stages.items()},
        {name: same(tap) for name, tap in taps.pre.items()},
    )


def _output(call: Call) -> Tap:
    return Tap(call.path, call.number, "output", call.wrote_is_rewritten)


def _input(call: Call) -> Tap:
    return Tap(call.path, call.number, "input", call.read_is_rewritten)


# ---------------------------------------------------------------- named by the user


def _check_names(named: Mapping[str, str], network: nn.Module, model: str) -> None:
    paths = {path for path, _ in network.named_modules() if path}
    for name, path in named.items():
        if name != "classifier" and _stage_number(name) < 1:
            raise NetworkError(f"{model}: taps.{name}: a tap is named stage1, stage2, ... or classifier")
        if path not in paths:
            raise NetworkError(f"{model}: taps.{name}: no module {path!r}{_near(path, paths)}")


def _near(path: str, paths: set[str]) -> str:
    # Hundreds of paths are no help; the outermost ones are where a search starts.
    close = suggest(path, paths)
    return close if "did you mean" in close else suggest(path, {p for p in paths if "." not in p})


def _stage_number(name: str) -> int:
    digits = name.removeprefix("stage")
    return int(digits) if name.startswith("stage") and digits.isdecimal() else 0


def _named_call(trace: Trace, path: str, model: str) -> Call:
    calls = [call for call in trace.calls if call.path == path]
    if not calls:
        raise NetworkError(f"{model}: the module {path!r} named in taps is never called in a pass")
    return calls[-1]


def _check_map(trace: Trace, name: str, call: Call, model: str) -> None:
    shape = None if call.wrote is None else trace.nodes[call.wrote].shape
    if shape is None or len(shape) != 4:
        got = "no single tensor that depends on the images" if shape is None else f"shape {list(shape)}"
        raise NetworkError(
            f"{model}: taps.{name}: the module {call.path!r} gives {got}; a stage is a map of shape "
            "[batch, channels, height, width]"
        )


# ---------------------------------------------------------------- found


def _classifier(trace: Trace) -> Call | None:
    """Returns the last linear layer, if the network returns its output."""
    calls = [call for call in trace.calls if isinstance(call.module, nn.Linear)]
    return next((call for call in reversed(calls) if call.wrote == trace.output), None)


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring bottlenecks of one resolution, and the node with which the way into it began."""

    nodes: tuple[int, ...]
    entered_by: Literal["convolution", "pooling", "nothing"]


def _stages(trace: Trace) -> list[Call]:
    runs = _runs(trace)
    if not runs:
        return []  # no map on the way to the output, as in an MLP
    downsamplings = [run.nodes[0] for run in runs if run.entered_by != "nothing"]
    outermost = _outermost_writers(trace)
    stages = []
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        if following is None:
            if all(_is_pooling(trace, node) for node in run.nodes):
                continue  # VGG's last pooling: nothing is computed at that resolution
        elif run.entered_by == "convolution" and following.entered_by == "pooling":
            continue  # ResNet's stem: a strided convolution whose map is pooled at once
        candidates = [node for node in run.nodes if node in outermost]
        if following is not None:
            outside = [
                node
                for node in candidates
                if not _inside_block(trace, node, following.nodes[0], downsamplings)
            ]
            candidates = outside or candidates[:1]
        if candidates:
            stages.append(outermost[candidates[-1]])
    return stages


def _runs(trace: Trace) -> list[_Run]:
    """Splits the bottlenecks from the images to the global pooling where the resolution changes."""
    height, width = trace.nodes[0].shape[2:]
    convolutions = [index for index, node in enumerate(trace.nodes) if node.operation == "convolution"]
    last_convolution = convolutions[-1] if convolutions else 0
    runs: list[_Run] = []
    before = 0
    for index in trace.bottlenecks():
        node = trace.nodes[index]
        if _is_global_pooling(trace, index, last_convolution):
            break
        if len(node.shape) != 4:
            continue  # a channel shuffle passes through five dimensions
        h, w = node.shape[2:]
        # Within a pixel of the images' own proportions; ConvNeXt's channels-last [B, H, W, C] is no map to
        # us.
        if abs(h * width - w * height) > max(height, width):
            continue
        if not runs or node.shape[2:] != trace.nodes[before].shape[2:]:
            runs.append(_Run((index,), _entered_by(trace, before, index)))
        else:
            runs[-1] = replace(runs[-1], nodes=(*runs[-1].nodes, index))
        before = index
    return runs


def _entered_by(trace: Trace, before: int, after: int) -> Literal["convolution", "pooling", "nothing"]:
    """Finds the kind of operation that changed the resolution between two neighbouring bottlenecks."""
    old, new = trace.nodes[before].shape[2:], trace.nodes[after].shape[2:]
    if old == new:
        return "nothing"
    for index in range(before + 1, after + 1):
        node = trace.nodes[index]
        changed = node.shape[2:] == new and any(trace.nodes[i].shape[2:] == old for i in node.inputs)
        if changed and node.operation == "convolution":
            return "convolution"
    return "pooling"


def _is_pooling(trace: Trace, index: int) -> bool:
    return "pool" in trace.nodes[index].operation


def _is_global_pooling(trace: Trace, index: int, last_convolution: int) -> bool:
    node = trace.nodes[index]
    if node.operation == "mean" or "adaptive" in node.operation:
        return True
    # An average pooling from 2x2 to 1x1 amid the network (DenseNet on small images) is an ordinary one.
    return "avg_pool" in node.operation and node.shape[2:] == (1, 1) and index > last_convolution


def _outermost_writers(trace: Trace) -> dict[int, Call]:
    """Returns, for each node that is a module's output, the outermost such call, the first of several."""
    writers: dict[int, Call] = {}
    for call in trace.calls:
        if call.wrote is None or not call.path:
            continue
        known = writers.get(call.wrote)
        if known is None or call.path.count(".") < known.path.count("."):
            writers[call.wrote] = call
    return writers


def _inside_block(trace: Trace, node: int, next_run: int, downsamplings: list[int]) -> bool:
    """Tells if a map lies within the block that down-samples after it.

    The block is the innermost call that holds both. A call that holds several down-samplings is no block
    but a container of stages (`features`, `blocks`), and what lies directly in it is seen from outside.
    """
    calls, other = trace.nodes[node].calls, trace.nodes[next_run].calls
    shared = [a for a, b in zip(calls, other, strict=False) if a == b]
    # The outermost shared call is the network itself.
    if len(shared) <= 1:
        return False
    return sum(shared[-1] in trace.nodes[d].calls for d in downsamplings) <= 1


def _before_activation(trace: Trace, stage: Call) -> Tap | None:
    for call in reversed(trace.calls):
        if call.wrote is not None and call.wrote == stage.wrote and _is_activation(call.module):
            return None if call.read is None else _input(call)
    return None


def _is_activation(module: nn.Module) -> bool:
    # torch.nn.modules.activation and timm.layers.activations hold nothing else but attention.
    home = type(module).__module__.rsplit(".", 1)[-1]
    return home.startswith("activation") and not isinstance(module, nn.MultiheadAttention)
