"""From a trained candidate to the plain network that ships.

Nothing is cut out: a fresh network of the student's own class is built and the trained tensors are loaded
into it, strictly. Whatever training added and forgot to take away has no place to go there and is an error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.errors import WeightsError
from kdcompress.networks.build import build
from kdcompress.networks.load_state import load_state

_NAMED = 3
"""Keys named per kind of problem in an error's message."""


def plain_student(
    candidate_state: dict[str, Tensor],
    model: str,
    *,
    num_classes: int,
    channels: int,
    image_size: tuple[int, int],
    allow_code: bool = False,
) -> nn.Module:
    """Builds a fresh network of the student's class with the candidate's weights.

    Args:
        candidate_state: The trained module's state dictionary. Prefixes of torch.compile and of parallel
            wrappers are taken off; every other key must fit.
        model: `FAMILY/NAME`.
        num_classes: K; 0 for a backbone.
        channels: C.
        image_size: (H, W).
        allow_code: True: a `python:` network may be built.

    Returns:
        On the CPU, float32, contiguous, in eval mode.

    Raises:
        WeightsError: A key is missing, left over or of another shape.
        NetworkError: No such network.
    """
    network = fresh_student(
        model, num_classes=num_classes, channels=channels, image_size=image_size, allow_code=allow_code
    )
    load_strictly(network, candidate_state, model)
    return network.eval()


def fresh_student(
    model: str, *, num_classes: int, channels: int, image_size: tuple[int, int], allow_code: bool = False
) -> nn.Module:
    """Builds a network like `build` and restores the run's random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        return build(
            model, num_classes=num_classes, channels=channels, image_size=image_size, allow_code=allow_code
        )


def load_strictly(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copies `state` into `network`, every tensor of both.

    Args:
        network: Built afresh.
        state: Tensors to load.
        source: Name of the tensors' source, for the message.

    Raises:
        WeightsError: A key is missing, left over or of another shape.
    """
    state = without_wrappers(state)
    problems = misfits(network, state)
    if problems:
        raise WeightsError(
            f"{source}: the tensors do not fit a fresh network strictly: {describe_misfits(problems)}"
        )
    load_state(network, state)


def misfits(network: nn.Module, state: dict[str, Tensor]) -> dict[str, list[str]]:
    """Lists the keys that do not fit a strict load, by kind; empty if all fit."""
    expected = network.state_dict()
    problems = {
        "left over": [key for key in state if key not in expected],
        "missing": [key for key in expected if key not in state],
        "of another shape": [k for k, v in expected.items() if k in state and state[k].shape != v.shape],
    }
    return {kind: keys for kind, keys in problems.items() if keys}


def describe_misfits(problems: dict[str, list[str]]) -> str:
    """Describes `misfits`, with the first few keys of each kind."""
    return ", ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in problems.items())


def without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefixes of torch.compile (`_orig_mod.`) and of parallel wrappers (`module.`)."""
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):  # compiled within parallel, or the other way round
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")
