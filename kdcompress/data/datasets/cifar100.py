"""60,000 photographs of 32 × 32 pixels in 100 classes: 50,000 to train on, 10,000 to test.

A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009). The fine labels.
"""

from __future__ import annotations

from kdcompress.data.cifar import CifarSet, read_splits
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.recipe import DataSection

CLASSES = 100
SIZE = 32
CHANNELS = 3
IMAGES = 60_000

NAMES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
WHERE = CifarSet(
    name="cifar100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    train=("train",),
    test="test",
    labels="fine_labels",
)


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the official splits.

    Raises:
        DataError: A file is missing or damaged.
        DownloadError: The set is nowhere and cannot be downloaded.
    """
    train, test, digest = read_splits(WHERE, section.root, CLASSES, progress)
    return Raw(train=train, test=test, class_names=NAMES, listing_sha256=digest, augment="crop_flip")
