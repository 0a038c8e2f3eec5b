"""The base class of all recipe sections; every method's Config is one too."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

RECIPE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""The form of a recipe's name."""
CANDIDATE_NAME = r"^[a-z0-9_]+$"
"""The form of a candidate's name in `train.ship`."""
SHA256 = r"^[0-9a-f]{64}$"
"""The form of a file's hash."""


class Section(BaseModel):
    """A frozen mapping whose unknown keys are errors and whose values are never coerced across types.

    An integer is accepted for a float; text never becomes a number (the YAML reader converts `1e-3`), and
    numbers are finite. The string under a field documents the key.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
