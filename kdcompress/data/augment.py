"""Augmentation of training images by presets; every choice is a draw of (seed, view, index).

An image's view is the same in any batch, in any worker process, on any device and after any resume.

- `none`: the image itself.
- `crop`: zero padding and a random crop of the old size; `crop_flip`: also mirrored half of the time.
- `resized_crop_flip`: a random part of 8 to 100 % of the area (`crop_box`), resized to the old size, mirrored
  half of the time.
- `weak`: what the data set uses.
- `strong`: the crop of `weak`, the colour jitter of MoCo v2 for 80 % of the images, then a cut-out square of
  half the side (DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout",
  2017; 16 of 32 pixels, as in the journal code of BYOT). The papers of KDCL, PCL and DDGSD name no stronger
  augmentation than a crop and a mirror image of their own for every view: their views are `weak`.
- `moco_v2` (Chen et al., "Improved baselines with momentum contrastive learning", 2020) and `simsiam` (Chen
  and He, "Exploring simple Siamese representation learning", CVPR 2021), the authors' values and order: a
  random part of 20 to 100 % of the area, brightness, contrast and saturation by 0.4 and hue by 0.1 for 80 %,
  grey for 20 %, blur for 50 %, mirrored half of the time.

Images of one channel have no saturation and hue and are grey: those operations are skipped, and a run says
so (`skipped_colours`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from kdcompress.data.colour import Colours, adjust_colours
from kdcompress.data.crop import SCALE, crop_draws, padded_crop, resized_crop
from kdcompress.data.prefetch import moved
from kdcompress.errors import UserError, suggest

Preset = Literal["none", "crop", "crop_flip", "resized_crop_flip", "weak", "strong", "moco_v2", "simsiam"]
PRESETS: tuple[str, ...] = get_args(Preset)

_STRONG = "+strong"  # suffix of a preset's name: the same crop, then the colours of `strong`


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The parts of a preset.

    Args:
        resized: Random resized crop in place of the padded one.
        pad: Padded crop; without it and `resized` the image is taken whole.
        mirror: Mirror image half of the time.
        scale: Share of the area that a resized crop keeps.
        colours: Changes of the pixel values after the crop, or None.
    """

    resized: bool = False
    pad: bool = False
    mirror: bool = False
    scale: tuple[float, float] = SCALE
    colours: Colours | None = None


_CONTRASTIVE = Pipeline(
    resized=True,
    mirror=True,
    scale=(0.2, 1.0),
    colours=Colours(0.4, 0.4, 0.4, 0.1, jitter_share=0.8, grey_share=0.2, blur_share=0.5),
)
_PIPELINES = {
    "none": Pipeline(),
    "crop": Pipeline(pad=True),
    "crop_flip": Pipeline(pad=True, mirror=True),
    "resized_crop_flip": Pipeline(resized=True, mirror=True),
    # The authors' lists of the two methods are the same.
    "moco_v2": _CONTRASTIVE,
    "simsiam": _CONTRASTIVE,
}
_STRONG_COLOURS = Colours(0.4, 0.4, 0.4, 0.1, jitter_share=0.8, cutout=True)


def resolve_preset(preset: str, usual: str = "none") -> str:
    """Resolves the presets that depend on the data set.

    Args:
        preset: One of `PRESETS`, or a resolved name.
        usual: The resolved preset of the data set or of the recipe.

    Returns:
        `weak` gives `usual`; `strong` gives the crop (and mirror image) of `usual` with strong colours; any
        other name is returned as it is.

    Raises:
        UserError: There is no such preset.
    """
    if preset == "weak":
        return usual
    if preset == "strong":
        return usual if usual.endswith(_STRONG) else usual + _STRONG
    pipeline_of(preset)
    return preset


def pipeline_of(preset: str) -> Pipeline:
    """Gives the parts of a resolved preset.

    Raises:
        UserError: There is no such preset.
    """
    name = preset.removesuffix(_STRONG)
    if name not in _PIPELINES:
        raise UserError(f"data.augment: unknown augmentation {preset!r}{suggest(preset, PRESETS)}")
    pipeline = _PIPELINES[name]
    return pipeline if name == preset else replace(pipeline, colours=_STRONG_COLOURS)


def skipped_colours(preset: str, channels: int) -> tuple[str, ...]:
    """Lists the colour operations of a resolved preset that images of so many channels do not go through.

    Raises:
        UserError: There is no such preset.
    """
    colours = pipeline_of(preset).colours
    if colours is None or channels == 3:
        return ()
    strengths = {"saturation": colours.saturation, "hue": colours.hue, "grey": colours.grey_share}
    return tuple(name for name, strength in strengths.items() if strength)


def augment(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    view: int,
    preset: str,
    pad: int,
    crops: Tensor | None = None,
) -> Tensor:
    """Augments the images of a batch.

    Args:
        images: `[B, C, H, W]` uint8, on any device.
        indices: `[B]` int64 on the same device or on the CPU: positions in the training set, which key the
            draws.
        seed: The run's seed.
        view: Number of the replayable view.
        preset: A resolved preset (`resolve_preset`).
        pad: Pixels added to each side before a padded crop.
        crops: `[B, 3]` `crop_draws` of the images on their device; None: they are drawn here.

    Returns:
        `[B, C, H, W]` uint8.

    Raises:
        UserError: There is no such preset.
    """
    pipeline = pipeline_of(preset)
    if len(images) == 0:
        return images
    if pipeline.resized:
        images = resized_crop(images, indices, seed=seed, view=view, scale=pipeline.scale)
    elif pipeline.pad:
        if crops is None:
            crops = crop_draws(moved(indices, images.device), seed=seed, view=view, pad=pad)
        images = padded_crop(images, crops, pad=pad, mirror=pipeline.mirror)
    if pipeline.colours is None:
        return images
    return adjust_colours(images, indices.cpu(), pipeline.colours, seed=seed, view=view)
