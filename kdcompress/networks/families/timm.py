"""Networks of the timm package, with its published weights (pip install 'kdcompress[timm]')."""

from __future__ import annotations

import difflib
import os
from types import ModuleType
from typing import Any

from torch import nn

from kdcompress.atomic import sha256_of
from kdcompress.errors import NetworkError, Uncuttable, UserError, WeightsError, suggest
from kdcompress.networks.families._chain import Chain, by_stride, chain, flat
from kdcompress.networks.families._pretrained import Pretrained, fetch_weights
from kdcompress.networks.read_checkpoint import read_state_dict

CHANNELS = (1, 3)
CUTTABLE = "timm/ ResNet, EfficientNet, MobileNetV3 and RegNet"


def build(name: str, *, num_classes: int, channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Builds a network of this family with random weights; see `networks.build.build`."""
    timm = _timm(name)
    config = timm.models.get_pretrained_cfg(name)
    # Networks with position embeddings are made for one size; the others do not know the argument.
    sized = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=channels, **sized
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        height, width = image_size
        raise NetworkError(
            f"timm/{name}: cannot be built for {channels}×{height}×{width} images: {error}"
        ) from error
    return network


def pretrained(name: str, enum_name: str, progress: bool, connect_s: float | None = None) -> Pretrained:
    """Loads published weights of a network.

    Args:
        name: One of `timm.list_models()`.
        enum_name: timm's tag, such as `a1_in1k`.
        progress: True: shows the download.
        connect_s: Limit in seconds until the server answers; None: see `fetch`.

    Raises:
        WeightsError: No such tag.
        DownloadError: They cannot be fetched.
    """
    timm = _timm(name)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if enum_name not in tags:
        raise WeightsError(f"timm/{name}: no weights {enum_name!r}{suggest(enum_name, tags)}")
    config = timm.models.get_pretrained_cfg(f"{name}.{enum_name}")
    if config.custom_load or not (config.hf_hub_id or config.url):
        raise WeightsError(
            f"timm/{name}: the weights {enum_name!r} are not published as plain tensors; pass a file instead"
        )
    if config.hf_hub_id:
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        file = config.hf_hub_filename or "model.safetensors"
        url = f"{hub}/{config.hf_hub_id}/resolve/main/{file}"
        path = fetch_weights(
            url, file_name=f"timm-{name}.{enum_name}-{file}", progress=progress, connect_s=connect_s
        )
    else:
        path = fetch_weights(config.url, progress=progress, connect_s=connect_s)
    return Pretrained(
        state_dict=read_state_dict(path),
        mean=tuple(config.mean),
        std=tuple(config.std),
        size=(config.input_size[1], config.input_size[2]),
        class_names=None,
        license_note=config.license,
        sha256=sha256_of(path),
    )


def default_weights(name: str) -> str | None:
    """Returns the tag of the weights that timm takes by default, or None; fetches nothing.

    None also where they are made for one image size, or their licence forbids commercial use.
    """
    config = _timm(name).models.get_pretrained_cfg(name)
    if config is None or config.custom_load or not (config.hf_hub_id or config.url):
        return None
    if config.fixed_input_size or "nc" in (config.license or "").split("-"):
        return None
    return config.tag or None


def segments(name: str, network: nn.Module) -> Chain:
    """Splits the network into a chain; see `networks.build.segments`."""
    models = _timm(name).models
    parts: Any = network  # timm's classes are not typed
    match network:
        case models.resnet.ResNet():
            stem = nn.Sequential(parts.conv1, parts.bn1, parts.act1, parts.maxpool)
            stages = [parts.layer1, parts.layer2, parts.layer3, parts.layer4]
            return chain(stem, stages, nn.Sequential(parts.global_pool, parts.fc))
        case models.efficientnet.EfficientNet():
            stem = nn.Sequential(parts.conv_stem, parts.bn1)
            stages = by_stride([*flat(parts.blocks), parts.conv_head, parts.bn2])
            return chain(stem, list(stages), nn.Sequential(parts.global_pool, parts.classifier))
        case models.mobilenetv3.MobileNetV3():
            stem = nn.Sequential(parts.conv_stem, parts.bn1)
            # Its last convolution comes after the pooling.
            after = (parts.global_pool, parts.conv_head, parts.norm_head, parts.act2, parts.flatten)
            stages = by_stride(flat(parts.blocks))
            return chain(stem, list(stages), nn.Sequential(*after, parts.classifier))
        case models.regnet.RegNet():
            stages = [parts.s1, parts.s2, parts.s3, nn.Sequential(parts.s4, parts.final_conv)]
            return chain(parts.stem, stages, parts.head)
    raise Uncuttable(f"timm/{name}: a {type(network).__name__} is not a network that can be cut into stages")


def _timm(name: str) -> ModuleType:
    """Imports timm and checks that it has the network."""
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError(f"timm/{name}: needs the timm package; pip install 'kdcompress[timm]'") from None
    bare = name.partition(".")[0]
    if bare != name:
        raise NetworkError(f"timm/{name}: give the tag as the weights: model: timm/{bare}, weights: a tag")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else "; see timm.list_models()"
        raise NetworkError(f"unknown network {name!r} of family 'timm'{hint}")
    module: ModuleType = timm
    return module
