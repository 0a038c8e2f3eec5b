"""What several methods ask of networks and images before any training, each refusal with its reason."""

from __future__ import annotations

from kdcompress.data.batch import DataInfo
from kdcompress.errors import NetworkError
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher


def pooled_widths(method: str, reads: str, networks: Networks) -> tuple[int, int]:
    """The widths of the student's and the teacher's pooled features.

    Args:
        method: Its name.
        reads: What it does with them, such as "embeds the pooled vectors of images".
        networks: With a teacher.

    Raises:
        NetworkError: One of them has none.
    """
    assert networks.teacher is not None
    return (
        pooled_width(method, reads, "student", networks.student),
        pooled_width(method, reads, "teacher", networks.teacher),
    )


def pooled_width(method: str, reads: str, role: str, network: Tapped | Teacher) -> int:
    """The width of one network's pooled features, as `pooled_widths`.

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
    """Quarter turns of a batch fit together only if its images are square.

    Raises:
        NetworkError: They are not.
    """
    height, width = data.image_size
    if height != width:
        raise NetworkError(
            f"method {method}: turns images by quarters, so they must be square, not {height}x{width}; set "
            "data.image_size to one number"
        )
