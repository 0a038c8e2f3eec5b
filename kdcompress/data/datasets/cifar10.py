"""60,000 photographs of 32 × 32 pixels in 10 classes: 50,000 to train on, 10,000 to test.

A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
"""

from __future__ import annotations

from kdcompress.data.cifar import CifarSet, read_splits
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.recipe import DataSection

CLASSES = 10
SIZE = 32
CHANNELS = 3
IMAGES = 60_000

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WHERE = CifarSet(
    name="cifar10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test="test_batch",
    labels="labels",
)


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the official splits.

    Raises:
        DataError: A file is missing or damaged.
        DownloadError: The set is nowhere and cannot be downloaded.
    """
    train, test, digest = read_splits(WHERE, section.root, CLASSES, progress)
    return Raw(train=train, test=test, class_names=NAMES, listing_sha256=digest, augment="crop_flip")
