"""Adds the golden images and outputs that prove a file on another machine before it is timed there."""

from __future__ import annotations

import dataclasses

import numpy as np

from kdcompress.bench.cell import Artefact
from kdcompress.containment import contained_file
from kdcompress.deploy.golden_file import NAME, read_golden


def with_golden(artefact: Artefact) -> Artefact:
    """Adds the images and reference outputs of the golden.npz beside an artefact's file, if there is one.

    The golden images come first, and the artefact's other images, if it has some, behind them.

    Args:
        artefact: The artefact; its shape is known.

    Raises:
        UserError: The golden.npz is damaged.
    """
    path = artefact.file.parent / NAME
    if artefact.reference is not None or artefact.pixels or not path.is_file():
        return artefact
    golden = read_golden(contained_file(artefact.file, NAME))
    if artefact.shape is None or tuple(golden.images.shape[1:]) != tuple(artefact.shape):
        return artefact  # of another network: the outputs stay unverified, and a warning says so
    more = () if artefact.images is None else (artefact.images,)
    images = np.concatenate([golden.images, *more]).astype(np.float32)
    tolerance = golden.tolerance if golden.spread > 0 else None
    return dataclasses.replace(artefact, images=images, reference=golden.outputs, tolerance=tolerance)
