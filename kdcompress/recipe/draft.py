"""A recipe document under construction, with the source of each of its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdcompress.recipe import checks
from kdcompress.recipe.network_sections import AUTO, RANDOM
from kdcompress.recipe.schema import expand_shorthand
from kdcompress.strict_yaml import parse_value

_PRESET_SECTIONS = ("method", "train", "optim")

_SHOWN = 200
"""Characters of an option that a message quotes."""
_DEEPEST, _DIGITS = 15, 6
"""Parts of a key, and digits of a number in it."""


class RecipeDraft:
    """A recipe's document while options change it; it is checked afterwards.

    Args:
        document: Content of the recipe file.

    Attributes:
        document: The document with all changes so far.
        sources: {dotted path of a value: where it comes from}.
        method_is_new: An option chose another method than the recipe's.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = expand_shorthand(document)
        self.sources = dict.fromkeys(_leaves(self.document), "recipe")
        self.method_is_new = False

    def select_method(self, name: str, source: str) -> None:
        """Replaces the method section by the name of a method; the other method's keys are dropped."""
        self.method_is_new = True
        self._put("method", {"name": name}, source)

    def apply_preset(self, name: str) -> str | None:
        """Sets the values of a preset of the method; returns what is wrong with it, or None."""
        method = checks.method_name(self.document)
        if method is None:
            return None  # the check of the method says what is wrong
        presets = checks.method_class(method).PRESETS
        if name not in presets:
            choices = (
                f"choices: {', '.join(sorted(presets))}" if presets else "it has none; leave --preset out"
            )
            return f"--preset {name}: the method {method!r} has no such preset; {choices}"
        for section in _PRESET_SECTIONS:
            for key, value in getattr(presets[name], section).items():
                if isinstance(self.document.setdefault(section, {}), dict):  # else the schema says so
                    self._put(f"{section}.{key}", value, f"preset {name}")
        return None

    def override(self, item: str) -> str | None:
        """Applies `key.path=value`; returns what is wrong with it, or None."""
        key, equals, text = item.partition("=")
        *above, last = key.split(".")
        item = item if len(item) <= _SHOWN else f"{item[:_SHOWN]}…"
        if not equals or not last or not all(above):
            return f"--set {item}: expected key.path=value"
        if len(above) > _DEEPEST:
            return f"--set {item}: is nested too deeply; no key of a recipe has so many parts"
        value, problem = parse_value(text)
        if problem is not None:
            return f"--set {item}: {problem}"
        here: Any = self.document
        for depth, part in enumerate(above):
            if isinstance(here, dict) and here.get(part) is None:
                here[part] = {}
            here, problem = _entry(here, part, ".".join(above[:depth]))
            if problem is not None:
                return f"--set {item}: {problem}"
        if not isinstance(here, dict):
            _, problem = _entry(here, last, ".".join(above))
            if problem is not None:
                return f"--set {item}: {problem}"
        if key == "method.name" and here.get("name") != value:
            self.select_method(value, "--set")
        elif key == "pseudo_labels.method.name" and here.get("name") != value:
            self._put("pseudo_labels.method", {"name": value}, "--set")
        else:
            self._put(key, value, "--set")
        return None

    def fit_networks_to_method(self, overrides: Sequence[str]) -> str | None:
        """Leaves out or adds teacher and peers where a new method has other needs than the recipe's.

        A teacher that an override sets stays, and peers are not added if an override lists them; a misfit is
        then a problem of the check.

        Args:
            overrides: All overrides.

        Returns:
            One line for the user about the changes, or None.
        """
        name = checks.method_name(self.document)
        try:
            needs = None if name is None else checks.method_needs(self.document)
        except ValidationError:
            needs = None
        if needs is None:
            return None  # the check of the method says what is wrong
        changes = []
        teacher = self.document.get("teacher")
        if not needs.teacher and teacher is not None and not checks.settings_of("teacher", overrides):
            self._put("teacher", None, f"left out: {name} has no teacher")
            changes.append("the recipe's teacher is left out")
        peers, student = self.document.get("peers") or [], self.document.get("student")
        if isinstance(peers, list) and not any(item.startswith("peers=") for item in overrides):
            missing = (needs.peers or 0) - len(peers)
            if needs.peers is None and peers:
                self._put("peers", [], f"left out: {name} has no peers")
                changes.append("the recipe's peers are left out")
            elif missing > 0 and isinstance(student, dict):
                copy = {key: value for key, value in student.items() if (key, value) != ("weights", AUTO)}
                copies = [dict(copy) for _ in range(missing)]
                self._put("peers", [*peers, *copies], f"copy of the student, for {name}")
                model = student.get("model")
                changes.append(f"{missing} peer(s) added: {model} like the student, other initial weights")
        own = checks.settings_of("pseudo_labels", overrides)
        if self.document.get("pseudo_labels") and checks.trains_backbone_alone(needs) and not own:
            self._put("pseudo_labels", None, f"left out: {name} is itself a training without labels")
            changes.append("the recipe's pseudo labels are left out, and the backbone ships")
        return f"method {name}: {'; '.join(changes)}" if changes else None

    def leave_out_weights_of_other_teacher(self) -> str | None:
        """Leaves out published weights that the recipe names where an override puts the user's own network.

        A file, and weights that an override names, stay; a misfit is then a problem of the run.

        Returns:
            One line for the user, or None if nothing was left out.
        """
        teacher = self.document.get("teacher")
        if not isinstance(teacher, dict) or not str(teacher.get("model")).startswith("python:"):
            return None
        theirs = [key for key in ("weights", "sha256") if self.sources.get(f"teacher.{key}") == "recipe"]
        if self.sources.get("teacher.model") != "--set" or "weights" not in theirs:
            return None
        name = teacher["weights"]
        if not isinstance(name, str) or name == RANDOM or Path(name).suffix or Path(name).exists():
            return None
        for key in theirs:
            self._put(f"teacher.{key}", None, "left out: they are of the recipe's own teacher")
        return (
            f"teacher.weights: the recipe's {name} is left out: {teacher['model']} may "
            "load its own; for a file: --set teacher.weights=FILE"
        )

    def sources_of(self, document: dict[str, Any]) -> dict[str, str]:
        """Returns the source of every value of the complete document, defaults included."""
        return {
            path: self.sources.get(
                path, "method default" if path.startswith("method.") else "command default"
            )
            for path in _leaves(document)
        }

    def _put(self, path: str, value: Any, source: str) -> None:
        """Sets a value whose sections exist, and records its source."""
        *above, last = path.split(".")
        here: Any = self.document
        for part in above:
            here = here[int(part)] if isinstance(here, list) else here[part]
        if isinstance(here, list):
            here[int(last)] = value
            if not isinstance(value, dict):
                path = ".".join(above)  # the entries of a list of values have one source
        else:
            here[last] = value
        self.document = expand_shorthand(self.document)

        def changed(key: str) -> bool:
            return f"{key}.".startswith(f"{path}.")

        kept = {key: value for key, value in self.sources.items() if not changed(key)}
        self.sources = kept | dict.fromkeys(filter(changed, _leaves(self.document)), source)


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted paths of all values that are no sections; a list without sections is one value."""
    if isinstance(value, dict) and value:
        entries = list(value.items())
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        entries = list(enumerate(value))
    else:
        yield path
        return
    for key, entry in entries:
        yield from _leaves(entry, f"{path}.{key}" if path else str(key))


def _entry(here: Any, part: str, where: str) -> tuple[Any, str | None]:
    """Returns an entry of a section or a list, and why there is none (None: there is one)."""
    if isinstance(here, dict):
        return here[part], None
    if not isinstance(here, list):
        return None, f"{where!r} holds a value, not a section"
    if not part.isdecimal() or len(part) > _DIGITS or int(part) >= len(here):
        return None, f"{where!r} is a list of {len(here)}, numbered from 0; it has no {part[:_SHOWN]!r}"
    return here[int(part)], None
