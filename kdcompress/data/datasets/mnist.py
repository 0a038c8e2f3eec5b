"""70,000 handwritten digits of 28 × 28 pixels in grey: 60,000 to train on, 10,000 to test.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition"
(1998).
"""

from __future__ import annotations

from dataclasses import replace

from kdcompress.data.idx import IdxSet, read_splits
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.recipe import DataSection

CLASSES = 10
SIZE = 28
CHANNELS = 1
IMAGES = 70_000
LICENSE = "CC BY-SA 3.0"

WHERE = IdxSet(
    name="mnist",
    below="MNIST/raw",
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/",),
    md5={
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
_PAD = 2  # the digits are centred with a margin of 4: a shift by more would push strokes out of the image


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the official splits.

    Raises:
        DataError: A file is missing or damaged.
        DownloadError: The set is nowhere and cannot be downloaded.
    """
    train, test, digest = read_splits(WHERE, section.root, CLASSES, progress)
    return Raw(
        train=replace(train, pad=_PAD),
        test=test,
        class_names=tuple(str(digit) for digit in range(CLASSES)),
        listing_sha256=digest,
        augment="crop",
        license=LICENSE,
    )
