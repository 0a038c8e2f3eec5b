"""Finding the student in a checkpoint of other training code, by keys and shapes, without guessing.

Training codes save the student under names of their own (`model`, `state_dict`, `student`, `model_ema`), with
prefixes (`module.`, `module.student.`), beside a teacher, peers, averages, heads and projectors. Every place
where all tensors of the plain student stand is a candidate:

* candidates that hold equal tensors are one;
* one that is named a teacher (`teacher`, `model_t`) is not chosen if another is named a student (`student`,
  `model_s`);
* if different ones are left (raw and averaged weights), the user must choose with `at`;
* tensors among the student's own layers that the student does not have are those of a larger network, and
  refused, unless the user says that only training used them.
"""

from __future__ import annotations

import re
import shlex
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kdcompress.errors import NonFiniteWeights, WeightsError, suggest
from kdcompress.networks.checkpoint import (
    Dictionaries,
    Place,
    Remainder,
    below,
    dictionaries,
    remainder,
    unwrapped,
)
from kdcompress.networks.expected_keys import COUNTER, Fit, Pattern
from kdcompress.networks.read_checkpoint import is_finite

_NEAREST = 6
"""Prefixes of a dictionary that are looked at closely where the network does not stand whole."""
_MOST_FITTING = 64
"""Places of a whole network that are compared with each other."""
_NAMED = 3
"""Keys named per kind of problem."""
_OF_A_NETWORK = frozenset({"model", "net", "network", "module"})
"""Beside `s` and `t`, which alone say nothing."""


@dataclass(frozen=True, slots=True)
class StudentInCheckpoint:
    """The student of a checkpoint.

    Args:
        at: Its place.
        state: Its tensors, by its own keys; counters of batches may be missing.
        num_classes: K, or None where its tensors do not say.
        channels: C, or None where its tensors do not say.
        also_at: Further places of the same tensors.
        set_aside: Places of other tensors that would fit, but are named a teacher's.
        remainder: Everything else in the checkpoint.
    """

    at: str
    state: dict[str, Tensor]
    num_classes: int | None
    channels: int | None
    also_at: tuple[str, ...]
    set_aside: tuple[str, ...]
    remainder: Remainder


def find_student(
    content: Any, pattern: Pattern, *, source: str, at: str | None = None, drop: Sequence[str] = ()
) -> StudentInCheckpoint:
    """Finds the one student in a checkpoint.

    Args:
        content: Returned by `read_checkpoint`.
        pattern: Keys and shapes of the student.
        source: The file, for messages.
        at: Its place, in the words of a message about several; None: it is the only one.
        drop: Names of modules among the student's own that only training used.

    Raises:
        WeightsError: It stands nowhere, in several places that differ, or as a part of a larger network.
        NonFiniteWeights: A value is not finite.
    """
    tensors_at = dict(dictionaries(content))
    if not tensors_at:
        raise WeightsError(
            f"{source}: holds no tensor with a name; save them with torch.save(network.state_dict(), FILE)"
        )
    candidates = [found for path in tensors_at for found in _candidates(path, tensors_at[path], pattern)]
    if at is not None:
        candidates = _at(candidates, at)
    fitting = [candidate for candidate in candidates if candidate.fit.whole]
    if not fitting:
        raise WeightsError(_nearest(candidates, tensors_at, pattern, source))
    if len(fitting) > _MOST_FITTING:
        raise WeightsError(
            f"{source}: {pattern.model} stands in {len(fitting)} places of it, such as {fitting[0].place}; "
            "name one with --at"
        )
    # Averages that were kept without batch norm's statistics cannot be taken, but may be what is meant.
    fitting += [candidate for candidate in candidates if candidate.fit.weights_only]
    standing = [candidate for candidate in fitting if not candidate.larger(pattern, drop)]
    if not any(candidate.fit.whole for candidate in standing):
        raise WeightsError(_larger(fitting[0], pattern, drop, source))
    groups = _distinct(standing)
    kept, aside = (groups, []) if at is not None else _by_name(groups)
    if len(kept) > 1:
        raise WeightsError(_ambiguous(kept, pattern, source))
    chosen, *copies = kept[0]
    if not chosen.fit.whole:
        raise WeightsError(_nearest([chosen], tensors_at, pattern, source))
    _check_drop(chosen, pattern, drop)
    for key, tensor in chosen.state.items():
        # As the student will hold them: float64 reaches further.
        if not is_finite(tensor):
            name = f"{chosen.place.prefix}{key}"
            raise NonFiniteWeights(
                f"{source}: {name!r} holds values that are not finite in float32 (NaN or infinite); take "
                "weights from before the training diverged"
            )
    return StudentInCheckpoint(
        at=str(chosen.place),
        state=chosen.state,
        num_classes=chosen.fit.num_classes,
        channels=chosen.fit.channels,
        also_at=tuple(str(copy.place) for copy in copies),
        set_aside=tuple(str(candidate.place) for group in aside for candidate in group),
        remainder=remainder(content, tensors_at, chosen.place, chosen.state, drop),
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A place where keys of the student stand.

    Args:
        place: The place.
        state: Tensors there, by the student's keys.
        beside: Other names there, without the prefix.
        fit: Comparison with the network.
    """

    place: Place
    state: dict[str, Tensor]
    beside: tuple[str, ...]
    fit: Fit

    def larger(self, pattern: Pattern, drop: Sequence[str]) -> list[str]:
        """Names among the student's own layers that the student does not have."""
        inside = [name for name in self.beside if name.partition(".")[0] in pattern.parts]
        return [name for name in inside if not below(name, drop)]

    @property
    def role(self) -> Literal["student", "teacher"] | None:
        """The role that its name says; the innermost word counts."""
        said: Literal["student", "teacher"] | None = None
        for segment in (*self.place.path, *self.place.prefix.split(".")):
            words = set(re.split(r"[^a-z0-9]+", segment.lower()))
            of_a_network = bool(words & _OF_A_NETWORK)
            if "student" in words or (of_a_network and "s" in words):
                said = "student"
            elif "teacher" in words or (of_a_network and "t" in words):
                said = "teacher"
        return said


_Groups = list[list[_Candidate]]


def _candidates(path: tuple[str, ...], tensors: dict[str, Tensor], pattern: Pattern) -> Iterator[_Candidate]:
    """Lists the prefixes in a dictionary that hold the network, and the closest mismatch."""
    met: Counter[str] = Counter()
    lengths = sorted({len(key) for key in pattern.needed}, reverse=True)
    for name in tensors:
        starts = [len(name) - length for length in lengths]
        met.update(
            name[:start]
            for start in starts
            if (start == 0 or (start > 0 and name[start - 1] == ".")) and name[start:] in pattern.needed
        )
    near = {prefix for prefix, _ in met.most_common(_NEAREST)}
    position = {name: number for number, name in enumerate(tensors)}
    ordered = sorted(tensors)
    for prefix, count in met.items():
        if count < len(pattern.needed) and prefix not in near:
            continue
        names = ordered
        if prefix:  # ends with a dot, and the character after the dot is the slash
            names = ordered[bisect_left(ordered, prefix) : bisect_left(ordered, f"{prefix[:-1]}/")]
        names = sorted(names, key=position.__getitem__)
        under = {name.removeprefix(prefix): tensors[name] for name in names}
        state = {key: under[key] for key in pattern.keys if key in under}
        beside = tuple(name for name in under if name not in state)
        yield _Candidate(Place(path, prefix), state, beside, pattern.fit(state))


def _at(candidates: list[_Candidate], at: str) -> list[_Candidate]:
    """Returns the candidates at a place or, if there are none, within it."""

    def plain(place: str) -> str:
        return place.removesuffix(".").replace(":", ".")

    name = unwrapped(plain(at))
    exact = [candidate for candidate in candidates if plain(str(candidate.place)) == name]
    matches = exact or [c for c in candidates if plain(str(c.place)).startswith(f"{name}.")]
    if not matches:
        places = [str(c.place) for c in candidates if c.fit.whole] or [str(c.place) for c in candidates]
        raise WeightsError(f"--at {shlex.quote(at)}: nothing of it stands there{suggest(at, places)}")
    return matches


def _distinct(candidates: Sequence[_Candidate]) -> _Groups:
    """Groups the candidates by equal tensors."""
    groups: _Groups = []
    for candidate in candidates:
        group = next((group for group in groups if _equal(group[0].state, candidate.state)), None)
        if group is None:
            groups.append([candidate])
        else:
            group.append(candidate)
    return groups


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    # An average may count its batches otherwise, and computes the same.
    keys = [key for key in one.keys() & other.keys() if not key.endswith(COUNTER)]
    return all(one[key].shape == other[key].shape and torch.equal(one[key], other[key]) for key in keys)


def _by_name(groups: _Groups) -> tuple[_Groups, _Groups]:
    """Splits candidates into possible students and those named teacher beside one named student."""
    roles = [{candidate.role for candidate in group} for group in groups]
    if not any("student" in role for role in roles):
        return groups, []
    with_roles = list(zip(groups, roles, strict=True))
    students = [group for group, role in with_roles if role != {"teacher"}]
    return students, [group for group, role in with_roles if role == {"teacher"}]


def _check_drop(chosen: _Candidate, pattern: Pattern, drop: Sequence[str]) -> None:
    for module in drop:
        if any(below(key, [module]) for key in pattern.keys):
            raise WeightsError(f"--drop {module}: holds tensors of the {pattern.model} itself")
        if not any(below(name, [module]) for name in chosen.beside):
            known = {name.rpartition(".")[0] or name for name in chosen.beside}
            raise WeightsError(f"--drop {module}: there is none at {chosen.place}{suggest(module, known)}")


def _ambiguous(groups: _Groups, pattern: Pattern, source: str) -> str:
    lines = [f"{source}: {len(groups)} different networks in it fit a {pattern.model}; choose one:"]
    for first, *copies in groups:
        classes = f"{first.fit.num_classes} classes" if first.fit.num_classes is not None else ""
        same = f"the same again at {', '.join(str(copy.place) for copy in copies)}" if copies else ""
        bare = "" if first.fit.whole else "without batch norm's statistics, so it cannot be taken"
        remarks = "; ".join(filter(None, (classes, same, bare)))
        lines.append(f"--at {shlex.quote(str(first.place))}" + (f"  ({remarks})" if remarks else ""))
    return "\n  ".join(lines)


def _larger(candidate: _Candidate, pattern: Pattern, drop: Sequence[str], source: str) -> str:
    inside = candidate.larger(pattern, drop)
    module = shlex.quote(_outermost(inside[0], pattern))
    return (
        f"{source}: at {candidate.place} stands a whole {pattern.model}, but with more among its layers "
        f"({_some(inside)}), as in a larger network; name that one with --student or, if only training used "
        f"them, leave them out with --drop {module}"
    )


def _outermost(name: str, pattern: Pattern) -> str:
    """Returns the shortest prefix of a name that is no module of the network's own."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        module = ".".join(parts[:count])
        if not any(below(key, [module]) for key in pattern.keys):
            return module
    return name


def _nearest(
    candidates: Sequence[_Candidate], tensors_at: Dictionaries, pattern: Pattern, source: str
) -> str:
    if not candidates:
        path, tensors = max(tensors_at.items(), key=lambda item: len(item[1]))
        return (
            f"{source}: nothing of a {pattern.model} stands in it; most of its tensors are at {Place(path)} "
            f"({_some(list(tensors))}), those of the network are called {_some(pattern.keys)}"
        )
    best = max(candidates, key=lambda candidate: (candidate.fit.right, -len(candidate.beside)))
    lines = [
        f"{source}: no whole {pattern.model} stands in it; the nearest is at {best.place}, where "
        f"{best.fit.right} of its {len(pattern.keys)} tensors fit"
    ]
    among = best.larger(pattern, ())
    unexpected = [*among, *(name for name in best.beside if name not in among)]
    kinds = (("missing", best.fit.missing), ("of another shape", best.fit.wrong), ("unexpected", unexpected))
    lines += [f"{kind}: {_some(keys)}" for kind, keys in kinds if keys]
    if not best.fit.missing and len(best.fit.wrong) <= _NAMED:
        lines.append("if these follow the size of its images, say that with --input-size")
    return "\n  ".join(lines)


def _some(keys: Sequence[str]) -> str:
    more = f", and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more
