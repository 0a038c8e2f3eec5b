"""Reading logits, features and stage maps of a network without changing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.errors import NetworkError
from kdcompress.networks import tap_points
from kdcompress.networks.activations import LOGITS, Activations, Want
from kdcompress.networks.build import NetworkSpec
from kdcompress.networks.compiled import CompiledPasses
from kdcompress.networks.hooks import reading
from kdcompress.networks.tap_points import Tap, Taps
from kdcompress.networks.trace import record, run_once
from kdcompress.networks.undisturbed import undisturbed
from kdcompress.tasks import CLASSIFICATION, Task

ALL: Want = frozenset({"logits", "pooled", "stages", "pre"})


class Tapped:
    """Reads a network's logits, pooled features and stage maps, and holds its normalisation and precision.

    It is no `nn.Module`. Between calls the network carries no hook and no wrapper, so it can be copied, saved
    and exported as it is. Its parameters are laid out channels-last, in place.

    Args:
        network: Takes normalised images `[B, C, H, W]`, returns logits `[B, K]`, or pooled features `[B, D]`
            if it is a backbone.
        model: `FAMILY/NAME` of the recipe.
        image_size: (H, W) in pixels of the images it will be given.
        channels: C.
        mean: Per channel, of images in [0, 1]; one value stands for all channels.
        std: Per channel, positive.
        input_spec: Replaces the four arguments before it; they are given or this is.
        taps: Module paths that replace the found ones (`{"stage1": ..., "classifier": ...}`).
        task: Classification, or embedding for a network that was built without a classifier: its logits must
            not be read then.

    Attributes:
        network: The network itself.
        model: `FAMILY/NAME`.
        image_size: (H, W) in pixels.
        channels: 1 or 3.
        task: Task of the network.
        input_spec: The way from an image to its input.
        num_classes: K, from a dry run; 0 for a task without classes.
        taps: The modules that are read.
        mean: `[C]` float32.
        std: `[C]` float32.
        precision: Autocast type of the passes; None is float32 throughout.
        compiled: Compiled passes (`compile`), used in place of the network's own; None: there are none.
        forward_context: Makes the context manager that is entered around every pass (used by
            quantisation-aware training).

    Raises:
        NetworkError: The network does not run on such images, does not return logits, or a named tap does
            not exist.
    """

    def __init__(
        self,
        network: nn.Module,
        model: str,
        *,
        image_size: tuple[int, int] | None = None,
        channels: int | None = None,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        input_spec: InputSpec | None = None,
        taps: Mapping[str, str] | Taps | None = None,
        task: Task = CLASSIFICATION,
    ) -> None:
        if input_spec is None:
            assert image_size is not None
            assert channels is not None
            height, width = (int(side) for side in image_size)
            mean, std = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
            input_spec = InputSpec(channels, height, width, mean, std)
        self.network = network.to(memory_format=torch.channels_last)
        self.model = model
        self.image_size = (input_spec.height, input_spec.width)
        self.channels = input_spec.channels
        self.task = task
        self.precision: torch.dtype | None = None
        self.compiled: CompiledPasses | None = None
        self.forward_context: Callable[[], AbstractContextManager[object]] = nullcontext
        self.use_input(input_spec)
        self._named = taps
        self._shapes: dict[tuple[int, int], Activations] = {}
        trace = record(network, self.sample(), model)
        width = trace.nodes[trace.output].shape[1]
        self.num_classes = trace.nodes[trace.output].shape[1] if task.has_classes else 0
        if isinstance(taps, Taps):
            self.taps = tap_points.retarget(trace, taps)
        else:
            self.taps = tap_points.find_taps(trace, network, model, taps, task=task)

    @property
    def spec(self) -> NetworkSpec:
        """Builds further networks of the same class, also of the user's own code: it was allowed to run."""
        return NetworkSpec(self.model, self.num_classes, self.channels, self.image_size, allow_code=True)

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters."""
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def to(self, device: torch.device | str) -> Self:
        """Moves network and normalisation, in place."""
        self.network.to(device)
        self._place(torch.device(device))
        return self

    def use_input(self, input_spec: InputSpec) -> None:
        """Replaces the input specification, of the same image size: the network is to hold other weights.

        Raises:
            NetworkError: A standard deviation is not positive.
        """
        self.input_spec = input_spec
        self.mean = torch.tensor(input_spec.mean, dtype=torch.float32)
        self.std = torch.tensor(input_spec.std, dtype=torch.float32)
        if bool((self.std <= 0).any()):
            raise NetworkError(f"{self.model}: std must be positive, got {self.std.tolist()}")
        self._place(self.device)

    def __call__(self, images: Tensor, want: Want = LOGITS) -> Activations:
        """Runs one pass in the network's present mode, under autocast if `precision` says so.

        Args:
            images: `[B, C, H, W]` float32 in [0, 1], not normalised, on the network's device.
            want: Fields to read; the rest stays empty.

        Returns:
            Float32 readings that carry gradients.

        Raises:
            NetworkError: "pooled" was asked for and the network has neither a linear classifier nor none.
        """
        compiled = None if self.compiled is None or not self.compiled.usable else self.compiled
        if want == frozenset({self.task.activation}):
            run = self.network if compiled is None else compiled.output
            with self.autocast(), self.forward_context():
                return self._collect(run(self.normalise(images)), {}, want)
        if compiled is not None:
            with self.autocast(), self.forward_context():
                read = compiled(self.normalise(images), tuple(self._requested_taps(want)))
            return self._collect(*read, want)
        with (
            self.autocast(),
            self.forward_context(),
            reading(self.network, self._requested_taps(want)) as readings,
        ):
            output = self.network(self.normalise(images))
        return self._collect(output, readings, want)

    def compile(self, on: bool = True, *, graphs: bool = False) -> None:
        """Compiles the passes of calls, at the first of each kind; `functional` and dry runs are not.

        Args:
            on: False goes back to the network's own passes.
            graphs: True replays CUDA graphs within `compiled.graphed_batch`, and is uncompiled elsewhere.
        """
        self.compiled = CompiledPasses(self.network, graphs=graphs) if on else None

    def functional(
        self,
        tensors: Mapping[str, Tensor],
        images: Tensor,
        want: Want = LOGITS,
        *,
        update_buffers: bool = False,
    ) -> Activations:
        """Runs one pass with other parameters and buffers in place of the network's own.

        Gradients reach the given tensors. In training mode batch norm updates the buffers that it is given:
        those in `tensors`, else copies, so that the network itself does not change.

        Args:
            tensors: By name as in `state_dict`; names left out keep the network's own tensors.
            images: The same as for a call.
            want: The same as for a call.
            update_buffers: True: buffers that are left out are the network's own and not copies of them.
        """
        replaced = dict(tensors)
        if not update_buffers:
            buffers = self.network.named_buffers()
            replaced |= {name: buffer.clone() for name, buffer in buffers if name not in replaced}
        with (
            self.autocast(),
            self.forward_context(),
            reading(self.network, self._requested_taps(want)) as readings,
        ):
            output = torch.func.functional_call(self.network, replaced, (self.normalise(images),))
        return self._collect(output, readings, want)

    def normalise(self, images: Tensor) -> Tensor:
        """Computes `(images - mean) / std`, channels-last, in one pass over the memory.

        Args:
            images: `[B, C, H, W]` in [0, 1]; grey ones `[B, 1, H, W]` are repeated for a network of three
                channels.
        """
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        images = images.contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self._shift, images, self._scale)

    def classify(self, pooled: Tensor) -> Tensor:
        """Computes the classifier's logits `[B, K]`, float32; gradients reach `pooled` and the classifier.

        Args:
            pooled: `[B, D]`, from this network or fitted to it.

        Raises:
            NetworkError: The network has no linear classifier.
        """
        with self.autocast():
            return wide(self.classifier(pooled))

    @property
    def classifier(self) -> nn.Module:
        """The module that computes logits from the pooled features.

        Raises:
            NetworkError: The network has no linear classifier.
        """
        return self.network.get_submodule(self._classifier_tap().path)

    def shapes(self, image_size: tuple[int, int] | None = None) -> Activations:
        """Returns the readings of a call as tensors without data (device "meta") for a batch of two.

        Args:
            image_size: (H, W) in pixels; None: the size given at construction.

        Raises:
            NetworkError: The network does not run on such images.
        """
        size = self.image_size if image_size is None else (int(image_size[0]), int(image_size[1]))
        if size not in self._shapes:
            want = ALL if self.taps.classifier is not None else ALL - {"pooled"}
            want = want if self.task.has_classes else ALL - LOGITS
            self._shapes[size] = _without_data(self.dry_run(want, size))
        return self._shapes[size]

    def dry_run(self, want: Want = LOGITS, image_size: tuple[int, int] | None = None) -> Activations:
        """Runs `sample` in eval mode and full precision; modes, buffers and generators are left alone.

        Args:
            want: Fields to read.
            image_size: (H, W) in pixels; None: the size given at construction.

        Raises:
            NetworkError: The network does not run on such images.
        """
        with undisturbed(self.network):
            return self.run_sample(want, image_size)

    def run_sample(self, want: Want = LOGITS, image_size: tuple[int, int] | None = None) -> Activations:
        """Runs `sample` in full precision and in the present mode; for the rest see `dry_run`."""
        with reading(self.network, self._requested_taps(want)) as readings:
            output = run_once(self.network, self.sample(image_size), self.model)
        return self._collect(output, readings, want)

    def train_mode(self, on: bool, freeze_bn: bool = False) -> None:
        """Switches between training and evaluation, here and nowhere else.

        Args:
            on: True: training.
            freeze_bn: Leave batch norm in evaluation, so that its statistics stay as they are.
        """
        self.network.train(on)
        if on and freeze_bn:
            freeze_batch_norm(self.network)

    def autocast(self) -> torch.autocast:
        """Returns the autocast context of forward passes; it does nothing if `precision` is None."""
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    def with_network(self, network: nn.Module) -> Tapped:
        """Taps another network with the same module paths; in-place hazards are found anew."""
        return self._like(network, self.image_size, self.taps)

    def at(self, image_size: tuple[int, int]) -> Tapped:
        """Taps the same network at another image size, where other maps may be its stages.

        Args:
            image_size: (H, W) in pixels.
        """
        return self._like(self.network, image_size, self._named)

    def _like(
        self, network: nn.Module, image_size: tuple[int, int], taps: Mapping[str, str] | Taps | None
    ) -> Tapped:
        height, width = (int(side) for side in image_size)
        spec = dataclasses.replace(self.input_spec, height=height, width=width)
        other = Tapped(network, self.model, input_spec=spec, taps=taps, task=self.task)
        other.precision = self.precision
        return other

    def sample(self, image_size: tuple[int, int] | None = None) -> Tensor:
        """Returns two fixed noise images `[2, C, H, W]`, normalised, without using a global generator."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, self.channels, *(image_size or self.image_size), generator=generator)
        parameter = next(self.network.parameters(), None)
        if parameter is not None and parameter.dtype == torch.float64:
            images = images.double()
        return self.normalise(images.to(self.device))

    def _place(self, device: torch.device) -> None:
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        self._scale = (1 / self.std).reshape(1, -1, 1, 1)
        self._shift = (-self.mean / self.std).reshape(1, -1, 1, 1)

    def _classifier_tap(self) -> Tap:
        if not self.task.has_classes:
            raise NetworkError(f"{self.model}: is a backbone here, built without its classifier")
        if self.taps.classifier is None:
            raise NetworkError(
                f"{self.model}: its logits do not come from a linear layer, so there are no pooled features; "
                "name the layer in taps: {classifier: MODULE.PATH}"
            )
        return self.taps.classifier

    def _requested_taps(self, want: Want) -> dict[Tap, None]:
        assert self.task.has_classes or "logits" not in want, f"{self.model} is a backbone: it has no logits"
        taps = [self._classifier_tap()] if self.task.has_classes and "pooled" in want else []
        if "stages" in want:
            taps += self.taps.stages.values()
        if "pre" in want:
            taps += self.taps.pre.values()
        return dict.fromkeys(taps)  # a stage may be its own pre

    def _collect(self, output: Any, readings: Mapping[Tap, Tensor], want: Want) -> Activations:
        if not isinstance(output, Tensor):
            raise NetworkError(
                f"{self.model}: returns {type(output).__name__} in training, expected logits in one tensor"
            )
        missing = [tap for tap in self._requested_taps(want) if tap not in readings]
        if missing:
            raise NetworkError(
                f"{self.model}: the module {missing[0].path!r} is not called in this pass as it was in the "
                "dry run; name other modules in taps"
            )
        # A tap that is both a stage and its own pre is widened once.
        widened = {tap: wide(tensor) for tap, tensor in readings.items()}
        pooled = None
        if "pooled" in want:
            pooled = widened[self._classifier_tap()] if self.task.has_classes else wide(output)
        if pooled is not None and pooled.ndim != 2:
            raise NetworkError(
                f"{self.model}: the classifier reads shape {list(pooled.shape)}, expected [batch, features]"
            )
        return Activations(
            logits=wide(output) if "logits" in want else None,
            pooled=pooled,
            stages={n: widened[tap] for n, tap in self.taps.stages.items()} if "stages" in want else {},
            pre={n: widened[tap] for n, tap in self.taps.pre.items()} if "pre" in want else {},
        )


def wide(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32 if it is in half precision; float64 stays, for gradient checks."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts every batch norm in a module into evaluation, so that its statistics stay as they are."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise NetworkError(f"{name} has {len(values)} values for images of {channels} channels")
    return tuple(values) * channels if len(values) == 1 else tuple(values)


def _without_data(activations: Activations) -> Activations:
    def meta(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to("meta")

    return Activations(
        logits=meta(activations.logits),
        pooled=meta(activations.pooled),
        stages={name: tensor.to("meta") for name, tensor in activations.stages.items()},
        pre={name: tensor.to("meta") for name, tensor in activations.pre.items()},
    )
