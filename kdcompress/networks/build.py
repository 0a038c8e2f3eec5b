"""Building untrained networks by `FAMILY/NAME`, and listing their stages."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from torch import nn

from kdcompress import discovery
from kdcompress.errors import NetworkError, Uncuttable, UserError, suggest

CHOOSE = "choose a method without heads and branches, or a network that can be cut:"
MIN_PIXELS = 8
"""The smallest height and width that any network is built for."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Names a network and the numbers that its shapes follow.

    Args:
        model: `FAMILY/NAME`, or `python:package.module:function`.
        num_classes: K, the width of the logits; 0: a backbone.
        channels: C of the images.
        image_size: (H, W) of the images.
        allow_code: True: a `python:` network, which runs the user's code, may be built.
    """

    model: str
    num_classes: int
    channels: int
    image_size: tuple[int, int]
    allow_code: bool = False

    def build(self) -> nn.Module:
        """Builds the network with freshly drawn weights; see `build` below."""
        return build(
            self.model, num_classes=self.num_classes, channels=self.channels, image_size=self.image_size,
            allow_code=self.allow_code,
        )  # fmt: skip


def build(
    model: str, *, num_classes: int, channels: int, image_size: tuple[int, int], allow_code: bool = False
) -> nn.Module:
    """Builds a network with freshly drawn weights, from torch's global random number generator.

    Args:
        model: `FAMILY/NAME`, or `python:package.module:function`.
        num_classes: K, the width of the logits. 0: a backbone, the same class without its last linear layer,
            which gives the features `[B, D]` that that layer would read.
        channels: C of the images; one of `accepted_channels(model)`.
        image_size: (H, W) of the images. Some networks down-sample less when they are small.
        allow_code: True: a `python:` network, which runs the user's code, may be built.

    Returns:
        The family's own class, in training mode on the CPU: normalised images `[B, C, H, W]` to logits `[B,
        K]`.

    Raises:
        NetworkError: No such network, not for these images, or not without a classifier.
        UserError: Code is not allowed, or the family's package is missing.
    """
    family, name = _split(model)
    if num_classes < 0:
        raise NetworkError(f"{model}: a classifier needs at least one class, got {num_classes}")
    accepted = accepted_channels(model)
    if channels not in accepted:
        channel_list = " or ".join(map(str, sorted(accepted)))
        raise NetworkError(f"{model}: takes images of {channel_list} channels, got {channels}")
    if min(image_size) < MIN_PIXELS:
        height, width = image_size
        raise NetworkError(
            f"{model}: images of {height}×{width} pixels are below the least, {MIN_PIXELS}×{MIN_PIXELS}; "
            "set data.image_size"
        )
    if family == "python" and not allow_code:
        raise UserError(f"{model!r} runs code of yours; pass --allow-code to let it")
    network = _family(family).build(name, num_classes=num_classes, channels=channels, image_size=image_size)
    assert isinstance(network, nn.Module), f"{model} built a {type(network).__name__}"
    return network


def accepted_channels(model: str) -> frozenset[int]:
    """Returns the channel counts that a network can be built for, without building it.

    Raises:
        NetworkError: No such family.
    """
    family, _ = _split(model)
    return frozenset(discovery.header("family", family).constants["CHANNELS"])


def segments(model: str, network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Lists the network as an ordered chain: `stem`, `stage1` … `stageN`, `head`.

    Applying the segments one after the other gives what the network gives. They share the network's own
    modules (no copies), so training a segment trains the network. A stage ends with the last map of its
    resolution and, but for stage1, begins with the down-sampling; its children are its blocks. The head is
    pooling, flattening and classifier. The stem is empty where its map would be a stage.

    Args:
        model: Name that the network was built from.
        network: Built by `build`, or a deep copy of such a network.

    Raises:
        Uncuttable: The stages of this network are not a straight chain, or not known to be.
    """
    family, name = _split(model)
    try:
        chain: list[tuple[str, nn.Module]] = _family(family).segments(name, network)
    except Uncuttable as error:
        raise Uncuttable(f"{error}; {CHOOSE} {cuttable()}") from None
    names = [segment for segment, _ in chain]
    assert names == ["stem", *(f"stage{i}" for i in range(1, len(chain) - 1)), "head"], names
    if len(chain) < 3:
        raise Uncuttable(f"{model}: has no stages to cut at; {CHOOSE} {cuttable()}")
    return chain


def cuttable() -> str:
    """Lists the networks that can be cut into stages, as each family says."""
    headers = (discovery.header("family", name) for name in discovery.names("family"))
    return "; ".join(header.constants["CUTTABLE"] for header in headers if "CUTTABLE" in header.constants)


def family_of(model: str) -> str:
    """Returns the family's name: `torchvision` of `torchvision/resnet18`, `python` of `python:module:name`.

    Raises:
        NetworkError: No such family.
    """
    return _split(model)[0]


def _split(model: str) -> tuple[str, str]:
    if model.startswith("python:"):
        return "python", model.removeprefix("python:")
    family, slash, name = model.partition("/")
    families = [known for known in discovery.names("family") if known != "python"]
    if not slash or not name:
        raise NetworkError(f"expected FAMILY/NAME, got {model!r}; families: {', '.join(families)}")
    if family not in families:
        raise NetworkError(f"unknown family {family!r} in {model!r}{suggest(family, families)}")
    return family, name


def _family(name: str) -> ModuleType:
    return discovery.load("family", name)
