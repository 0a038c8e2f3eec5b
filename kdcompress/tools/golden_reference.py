"""What goes along with a file that is measured on another machine, so that it is the same network there."""

from __future__ import annotations

import dataclasses

import numpy as np

from kdcompress.bench.plan import Artefact
from kdcompress.deploy.golden_file import NAME, read_golden


def with_golden(artefact: Artefact) -> Artefact:
    """With the images of the golden.npz beside its file, and what it must make of them; else as it is.

    The golden images come first, and the others, if it has some, behind them.

    Args:
        artefact: With its shape.

    Raises:
        UserError: The golden.npz is damaged.
    """
    path = artefact.file.parent / NAME
    if artefact.reference is not None or artefact.pixels or not path.is_file():
        return artefact
    golden = read_golden(path)
    if artefact.shape is None or tuple(golden.images.shape[1:]) != tuple(artefact.shape):
        return artefact  # of another network: what it gives stays unverified, and that is said
    more = () if artefact.images is None else (artefact.images,)
    images = np.concatenate([golden.images, *more]).astype(np.float32)
    tolerance = golden.tolerance if golden.spread > 0 else None
    return dataclasses.replace(artefact, images=images, reference=golden.outputs, tolerance=tolerance)
