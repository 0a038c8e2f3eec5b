"""Licences of what a run starts from: images, generated images and weights; and whether they allow selling.

A licence that the user states in the recipe goes before the one that the data set or the weights came with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kdcompress.errors import RunFailed
from kdcompress.networks.from_recipe import LoadedNetwork
from kdcompress.run.context import Run

Policy = Literal["any", "permissive"]
Use = Literal["allowed", "forbidden", "not known"]

_FORBIDDEN = re.compile(
    r"non[- ]?commercial|(not for|no) commercial|\bnc\b|research[- ](use[- ])?only|academic[- ]use",
    re.IGNORECASE,
)
_UNCLEAR = re.compile(r"\bnd\b|no[- ]?deriv", re.IGNORECASE)
"""Nobody has decided whether a network is a derivative of its training images."""
_ALLOWED = re.compile(
    r"\b(own|mit|0?bsd|apache|isc|unlicense|zlib|public domain|cc0|pddl|odc-by|cc[- ]by|[al]?gpl|mpl|cdla)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Licensed:
    """Something that the student learns from.

    Args:
        what: What it is, for messages.
        key: Key of the recipe by which the user states its licence.
        licence: As stated, or None if nobody said.
    """

    what: str
    key: str
    licence: str | None

    @property
    def commercial_use(self) -> Use:
        """Tells if the licence allows selling what was made with it, as far as its text is understood.

        A student of another run has several licences, separated by semicolons; all of them count.
        """
        parts = (self.licence or "").split(";")
        if any(_FORBIDDEN.search(part) for part in parts):
            return "forbidden"
        clear = all(_ALLOWED.search(part) and not _UNCLEAR.search(part) for part in parts)
        return "allowed" if clear else "not known"


class LicenceRefused(RunFailed):
    """A licence forbids commercial use, or is not known, and the policy demands that it is allowed."""


def licences(run: Run, networks: Mapping[str, LoadedNetwork]) -> list[Licensed]:
    """Lists the licences of the images and of all weights that a run starts from.

    Random weights have none.

    Args:
        run: The run, with its data.
        networks: From `load_networks`.
    """
    found = [Licensed(f"the images of {run.data.name}", "data.license", run.data.license)]
    if run.recipe.data.extra is not None:
        found.append(Licensed("the generated images", "data.extra.license", run.recipe.data.extra.license))
    for name, network in networks.items():
        if network.own_weights and run.recipe.teacher is not None:
            what = f"the weights that {run.recipe.teacher.model} loads"
            found.append(Licensed(what, "teacher.license", run.recipe.teacher.license))
        if network.weights is not None:
            key = f"peers.{int(name[4:]) - 1}" if name.startswith("peer") else name
            found.append(
                Licensed(f"the weights {network.weights.source}", f"{key}.license", network.weights.license)
            )
    return found


def check_licences(run: Run, networks: Mapping[str, LoadedNetwork], policy: Policy) -> None:
    """Stops a run whose student could not be sold.

    Args:
        run: The run.
        networks: From `load_networks`.
        policy: `any` allows everything.

    Raises:
        LicenceRefused: With each licence that forbids commercial use or is not known.
    """
    if policy == "any":
        return
    reasons = []
    for entry in licences(run, networks):
        if entry.commercial_use == "forbidden":
            reasons.append(f"{entry.what}: commercial use is not allowed ({entry.licence})")
        elif entry.commercial_use == "not known":
            stated = (
                f"{entry.licence!r} is not known to kdcompress"
                if entry.licence
                else "the licence is not known"
            )
            reasons.append(f"{entry.what}: {stated}; if you know it, state it with --set {entry.key}=NAME")
    if reasons:
        raise LicenceRefused(
            "\n  ".join(["--license-policy permissive: nothing was trained, since", *reasons])
        )
