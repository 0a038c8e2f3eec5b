"""Writes and proves a network's files, and then makes the derived files; every export goes through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.accuracy import Batches
from kdcompress.deploy.derived import DerivedFile
from kdcompress.deploy.gate import Gate
from kdcompress.deploy.ship import Shipped, ship

DerivedMaker = Callable[[Path, Shipped], Sequence[DerivedFile]]
"""Makes files from the proven `student.onnx` of a folder, proves them and gives them their final names."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to write and prove, with the content of its files.

    Args:
        network: The trained network; takes normalised images.
        model: Its `FAMILY/NAME`.
        spec: Its input.
        class_names: K names; none: a backbone.
        test: Opens the images that the files are proved on; called several times.
        metadata: Metadata of the files, such as the recipe.
        teacher_outputs: The teacher's outputs on the same images; None: no teacher.
        extra_gates: Gates that were checked before the export.
    """

    network: nn.Module
    model: str
    spec: InputSpec
    class_names: Sequence[str]
    test: Callable[[], Batches]
    metadata: dict[str, str]
    teacher_outputs: Tensor | None = None
    extra_gates: Sequence[Gate] = ()


def write_subject(
    subject: Subject,
    folder: Path,
    formats: Sequence[str],
    makers: Sequence[DerivedMaker] = (),
    *,
    opset: int | None = None,
    allow_code: bool = False,
) -> tuple[Shipped, list[DerivedFile]]:
    """Writes a network in every format, proves and names the files, and makes the derived files.

    Args:
        subject: The network.
        folder: An existing folder.
        formats: Names from `discovery.names("format")`.
        makers: Makers of derived files, in this order.
        opset: ONNX opset; None: the exporter's choice.
        allow_code: True: a `python:` network may be built.

    Returns:
        The proven files, and the derived files, those that failed a gate among them.

    Raises:
        UserError: The exporter cannot write this opset.
        GateFailed: A gate of the network's own files failed.
    """
    shipped = ship(
        subject.network,
        subject.model,
        subject.spec,
        subject.class_names,
        subject.test,
        folder,
        formats=list(dict.fromkeys(formats)),
        metadata=subject.metadata,
        allow_code=allow_code,
        extra_gates=subject.extra_gates,
        opset=opset,
        teacher_outputs=subject.teacher_outputs,
    )
    return shipped, [file for make in makers for file in make(folder, shipped)]
