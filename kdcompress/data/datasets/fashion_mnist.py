"""70,000 articles of clothing of 28 × 28 pixels in grey: 60,000 to train on, 10,000 to test.

H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms" (2017).
"""

from __future__ import annotations

from kdcompress.data.idx import IdxSet, read_splits
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.recipe import DataSection

CLASSES = 10
SIZE = 28
CHANNELS = 1
IMAGES = 70_000
LICENSE = "MIT"

NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
WHERE = IdxSet(
    name="fashion-mnist",
    below="FashionMNIST/raw",
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    md5={
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    system_folders=("/usr/share/datasets/fashion-mnist",),  # Debian's package dataset-fashion-mnist
)


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the official splits.

    Raises:
        DataError: A file is missing or damaged.
        DownloadError: The set is nowhere and cannot be downloaded.
    """
    train, test, digest = read_splits(WHERE, section.root, CLASSES, progress)
    return Raw(
        train=train, test=test, class_names=NAMES, listing_sha256=digest, augment="crop_flip", license=LICENSE
    )
