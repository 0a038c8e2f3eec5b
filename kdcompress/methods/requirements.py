"""Checks of networks and images that several methods make before training."""

from __future__ import annotations

from kdcompress.data.batch import DataInfo
from kdcompress.errors import NetworkError
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher


def pooled_widths(method: str, reads: str, networks: Networks) -> tuple[int, int]:
    """Returns the widths of the student's and the teacher's pooled features.

    Args:
        method: Name of the method.
        reads: Its use of the features, such as "embeds the pooled vectors of images".
        networks: Student and teacher.

    Raises:
        NetworkError: One of them has none.
    """
    assert networks.teacher is not None
    return (
        pooled_width(method, reads, "student", networks.student),
        pooled_width(method, reads, "teacher", networks.teacher),
    )


def pooled_width(method: str, reads: str, role: str, network: Tapped | Teacher) -> int:
    """Returns the width of one network's pooled features; arguments as in `pooled_widths`.

    Raises:
        NetworkError: It has none.
    """
    pooled = network.shapes().pooled
    if pooled is None:
        raise NetworkError(
            f"method {method}: {reads}, and the {role} {network.model} has none, since no linear layer ends "
            f"it; name that layer in {role}.taps: {{classifier: MODULE.PATH}}"
        )
    return pooled.shape[1]


def square_images(method: str, data: DataInfo) -> None:
    """Refuses images that are not square, since rotated images of a batch must have one shape.

    Raises:
        NetworkError: They are not.
    """
    height, width = data.image_size
    if height != width:
        raise NetworkError(
            f"method {method}: turns images by quarters, so they must be square, not {height}x{width}; set "
            "data.image_size to one number"
        )
