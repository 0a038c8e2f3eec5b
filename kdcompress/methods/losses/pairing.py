"""Which stage of the student is held to which stage of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from kdcompress.networks.activations import Activations


@dataclass(frozen=True, slots=True)
class Pair:
    """A stage of each network, of the same part of the picture at the same resolution.

    Args:
        student: Name of the stage, as in `Activations.stages` and `.pre`.
        teacher: Name of the stage.
        student_shape: (C, H, W) of the student's map.
        teacher_shape: (C, H, W) of the teacher's map.
    """

    student: str
    teacher: str
    student_shape: tuple[int, int, int]
    teacher_shape: tuple[int, int, int]

    @property
    def same_size(self) -> bool:
        """True if both maps have the same height and width."""
        return self.student_shape[1:] == self.teacher_shape[1:]

    @property
    def pixels(self) -> int:
        """Positions of the smaller map."""
        (_, h, w), (_, height, width) = self.student_shape, self.teacher_shape
        return min(h, height) * min(w, width)

    @property
    def same_channels(self) -> bool:
        """True if both maps have as many channels."""
        return self.student_shape[0] == self.teacher_shape[0]


def pairs(student: Activations, teacher: Activations) -> tuple[Pair, ...]:
    """Pairs the stages of two networks by the resolution of their maps.

    The deepest stage pairs with the deepest, whatever their sizes. Of the others, those pair whose heights
    and widths differ by less than a factor of √2 (33 pixels halve to 17 in one network and to 16 in another);
    a stage that has no counterpart stays out.

    Args:
        student: Its `shapes()`.
        teacher: Its `shapes()`.

    Returns:
        Shallow to deep, each stage at most once; empty if one of the networks has no stages.
    """
    if not student.stages or not teacher.stages:
        return ()
    *upper_s, deepest_s = student.stages
    *upper_t, deepest_t = teacher.stages
    above = _by_resolution(student, teacher, upper_s, upper_t)
    return (*above, pair(student, teacher, deepest_s, deepest_t))


def pairs_of_one_size(student: Activations, teacher: Activations) -> tuple[Pair, ...]:
    """Pairs the stages whose maps have the same height and width, for losses between pixels.

    Other than in `pairs`, the deepest stages are no exception: where a student halves its maps once more
    than its teacher, the teacher's deepest stage pairs with the student's of that size.

    Args:
        student: Its `shapes()`.
        teacher: Its `shapes()`.

    Returns:
        Shallow to deep, each stage at most once; may be empty.
    """
    matches = _by_resolution(student, teacher, list(student.stages), list(teacher.stages))
    return tuple(each for each in matches if each.same_size)


def pair(student: Activations, teacher: Activations, ours: str, theirs: str) -> Pair:
    """Pairs two stages by name.

    Args:
        student: Its `shapes()`.
        teacher: Its `shapes()`.
        ours: One of the student's stages.
        theirs: One of the teacher's stages.
    """
    return Pair(ours, theirs, _shape(student, ours), _shape(teacher, theirs))


def stage_maps(model: str, shapes: Activations) -> str:
    """Describes a network's stages for an error: `cifar/resnet8 (stage1 16×32×32, stage2 32×16×16)`.

    Args:
        model: `FAMILY/NAME`.
        shapes: Its `shapes()`.
    """
    sizes = [f"{name} {'×'.join(map(str, _shape(shapes, name)))}" for name in shapes.stages]
    return f"{model} ({', '.join(sizes) or 'no stages'})"


def _by_resolution(
    student: Activations, teacher: Activations, ours: list[str], theirs: list[str]
) -> list[Pair]:
    """Pairs stages from the deepest upwards; of two maps that do not match, the smaller is skipped."""
    matches: list[Pair] = []
    ours, theirs = list(ours), list(theirs)
    while ours and theirs:
        last = pair(student, teacher, ours[-1], theirs[-1])
        (_, h, w), (_, height, width) = last.student_shape, last.teacher_shape
        if max(h / height, height / h, w / width, width / w) < sqrt(2):
            matches.append(last)
            ours.pop()
            theirs.pop()
        elif h * w < height * width:
            ours.pop()
        else:
            theirs.pop()
    return matches[::-1]


def _shape(shapes: Activations, stage: str) -> tuple[int, int, int]:
    _, channels, height, width = shapes.stages[stage].shape
    return channels, height, width
