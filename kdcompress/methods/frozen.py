"""A module that a method reads and never trains, such as a copy of the student or a head of the teacher."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn


class Frozen(nn.Module):
    """Keeps a module in evaluation mode and without gradients, as part of the method's checkpoint.

    `train()` of the method does not reach it. Keys of its state dictionary are those of the module itself.

    Args:
        module: Changed in place: parameters no longer require gradients.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.module = module.requires_grad_(False).eval()

    def forward(self, *args: Any) -> Any:
        """Returns the module's output; gradients reach the arguments."""
        return self.module(*args)

    def train(self, mode: bool = True) -> Self:
        """Changes nothing: the module stays in evaluation mode."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the state dictionary of the module."""
        return self.module.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}module.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *rest)
