"""Listing the tensors of a checkpoint by their place, and its remainder without one network."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcompress.networks.expected_keys import elements

_WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Parts of keys that torch.compile and similar wrappers insert at any depth; ignored in places."""
_MAX_DEPTH = 8
_MOST_PLACES = 8
"""Largest number of places of one container; training codes save a network under two or three names."""

Dictionaries = Mapping[tuple[str, ...], dict[str, Tensor]]
"""The tensors that each container of a checkpoint itself holds, by its path."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place of tensors in a checkpoint; as text `ema`, `state_dict:module.student.`, or `.` for its top.

    Args:
        path: Keys of the dictionaries, the outermost first.
        prefix: Begins the tensors' names in the innermost; empty, or ends with a dot.
    """

    path: tuple[str, ...]
    prefix: str = ""

    def __str__(self) -> str:
        return ":".join([*self.path, *([self.prefix] if self.prefix else [])]) or "."


@dataclass(frozen=True, slots=True)
class DroppedPart:
    """A module, or another part of a checkpoint, that is left behind.

    Args:
        at: Its place.
        tensors: Number of tensors.
        parameters: Numbers in them, batch norm's statistics aside.
    """

    at: str
    tensors: int
    parameters: int


def dictionaries(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yields the tensors that each container itself holds, by its path.

    A container that stands in many places is read in the first `_MOST_PLACES` of them: seven
    lists that hold each other a hundred times have 10^14 places.
    """
    yield from _dictionaries(content, (), Counter())


def _dictionaries(
    content: Any, path: tuple[str, ...], visits: Counter[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    number = id(content)  # the checkpoint keeps all of its containers alive
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or len(path) == _MAX_DEPTH or visits[number] == _MOST_PLACES:
        return
    visits[number] += 1
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    bare = {unwrapped(name): tensor for name, tensor in tensors.items()}
    if tensors:
        yield path, bare if len(bare) == len(tensors) else tensors
    for key, value in content.items():
        yield from _dictionaries(value, (*path, str(key)), visits)


def unwrapped(name: str) -> str:
    """Removes from a tensor's name what torch.compile and other wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


@dataclass(frozen=True, slots=True)
class Remainder:
    """The rest of a checkpoint without one network.

    Args:
        dropped: Its other tensors, in parts as large as the way to the network tells them apart.
        values: Names of what is no tensor, or a lone number.
    """

    dropped: tuple[DroppedPart, ...]
    values: tuple[str, ...]


def remainder(
    content: Any, found: Dictionaries, place: Place, keys: Collection[str], apart: Sequence[str] = ()
) -> Remainder:
    """Collects the rest of a checkpoint without one network.

    Args:
        content: The checkpoint.
        found: Its `dictionaries`.
        place: Place of the network.
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
    dropped = (DroppedPart(at, len(members), elements(members)) for at, members in groups.items())
    return Remainder(tuple(dropped), (*_values(content, found), *numbers))


def below(name: str, modules: Iterable[str]) -> bool:
    """Tells if a tensor's name is one of the modules', or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _values(content: Any, found: Dictionaries) -> Iterator[str]:
    with_tensors = {path[0] for path in found if path}
    if isinstance(content, Mapping):
        for key, value in content.items():
            if not isinstance(value, Tensor) and str(key) not in with_tensors:
                yield str(key)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Counts the entries that two sequences share before they differ."""
    differs = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))
