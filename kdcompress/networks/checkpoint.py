"""What a checkpoint holds, place by place, and what is left of it when one network is taken out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcompress.networks.expected_keys import elements

_WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""What torch.compile and its like put into keys, at whatever depth; no place is named by it."""
_MAX_DEPTH = 8

Dictionaries = Mapping[tuple[str, ...], dict[str, Tensor]]
"""The tensors that each container of a checkpoint itself holds, by its path."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where tensors stand in a checkpoint; as text `ema`, `state_dict:module.student.`, or `.` for its top.

    Args:
        path: Keys of the dictionaries, the outermost first.
        prefix: Of the tensors' names in the innermost; empty, or ends with a dot.
    """

    path: tuple[str, ...]
    prefix: str = ""

    def __str__(self) -> str:
        return ":".join([*self.path, *([self.prefix] if self.prefix else [])]) or "."


@dataclass(frozen=True, slots=True)
class Dropped:
    """A module, or another part of a checkpoint, that is left behind.

    Args:
        at: Where it stands.
        tensors: How many.
        parameters: Numbers in them, batch norm's statistics aside.
    """

    at: str
    tensors: int
    parameters: int


def dictionaries(
    content: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The tensors that each container itself holds, by its path."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or len(path) == _MAX_DEPTH:
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    bare = {unwrapped(name): tensor for name, tensor in tensors.items()}
    if tensors:
        yield path, bare if len(bare) == len(tensors) else tensors
    for key, value in content.items():
        yield from dictionaries(value, (*path, str(key)))


def unwrapped(name: str) -> str:
    """A tensor's name without what torch.compile and its like put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a checkpoint when a network is taken out.

    Args:
        dropped: Its other tensors, in parts as large as the way to the network tells them apart.
        values: Names of what is no tensor, or a lone number.
    """

    dropped: tuple[Dropped, ...]
    values: tuple[str, ...]


def left(
    content: Any, found: Dictionaries, place: Place, keys: Collection[str], apart: Sequence[str] = ()
) -> Left:
    """What is left when a network is taken out.

    Args:
        content: The checkpoint.
        found: Its `dictionaries`.
        place: Where the network stands.
        keys: Its tensors' names there.
        apart: Modules there that are told for themselves.
    """
    groups: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    numbers = []
    for path, tensors in found.items():
        for name, tensor in tensors.items():
            inner = name.removeprefix(place.prefix) if name.startswith(place.prefix) else None
            if path == place.path and inner in keys:
                continue
            # An accuracy, a count of averages.
            if path in {(), place.path} and tensor.ndim == 0 and "." not in name:
                numbers.append(str(Place((*path, name))))
                continue
            if path != place.path:
                shared = _shared(path, place.path)
                # Beside the way to the network, as a random generator's state, it has but its own name.
                part = Place(path[: shared + 1] if shared < len(path) else (*path, name.partition(".")[0]))
            else:
                module = next((place.prefix + m for m in apart if inner and below(inner, [m])), None)
                segments = name.split(".")
                shared = _shared(segments, place.prefix.split("."))
                part = Place((*path, module or ".".join(segments[: shared + 1])))
            groups[str(part)].append((name, tensor))
    dropped = (Dropped(at, len(members), elements(members)) for at, members in groups.items())
    return Left(tuple(dropped), (*_values(content), *numbers))


def below(name: str, modules: Iterable[str]) -> bool:
    """Whether a tensor's name is one of the modules', or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _values(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            if not isinstance(value, Tensor) and next(dictionaries(value), None) is None:
                yield str(key)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many entries two sequences share before they part."""
    differs = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))
