"""What a checked, frozen section of a recipe is; every method's Config is one too."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen mapping whose unknown keys are errors and whose values are never coerced across types.

    Integers are accepted where a float is asked for; text never becomes a number (the YAML reader already
    turned `1e-3` into one), and a number is finite. Field docstrings are the keys' documentation.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
