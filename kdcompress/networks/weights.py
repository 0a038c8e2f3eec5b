"""Finding a network's weights, and loading them strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from kdcompress import discovery
from kdcompress.atomic import sha256_of
from kdcompress.data.input_spec import InputSpec
from kdcompress.documents import read_document
from kdcompress.errors import NonFiniteWeights, UserError, WeightsError
from kdcompress.networks.build import family_of
from kdcompress.networks.expected_keys import COUNTER
from kdcompress.networks.families._pretrained import Pretrained
from kdcompress.networks.load_state import load_state
from kdcompress.networks.read_checkpoint import PREFIXES, SUFFIXES, is_finite, read_state_dict
from kdcompress.recipe import RANDOM
from kdcompress.schemas.config import WeightsConfig
from kdcompress.schemas.run import Manifest
from kdcompress.user_paths import expand_home

_CONFIG_SCHEMA = "kdcompress.config/"
_CONFIG_VERSION = 1
_PROJECTIONS = ("projection_head.", "prediction_head.", "projector.", "predictor.", "prototypes.")
"""Modules behind a network that only the loss of self-supervised training uses, if saved beside it."""
_PARTS = {
    "encoder_q.": ("encoder_k.", "queue"),  # MoCo
    "base_encoder.": ("momentum_encoder.", *_PROJECTIONS),  # MoCo v3
    "teacher.": ("student.",),  # DINO, whose teacher is the one that is evaluated
    "backbone.": ("head.", "bn.", *_PROJECTIONS),  # DINO, Barlow Twins
    "encoder.": ("head.", *_PROJECTIONS),  # SupCon
}
"""Prefix of the network in checkpoints of self-supervised training, and what may be saved beside it."""
_IN_PRETRAINING = ("encoder_q.", "base_encoder.", "teacher.")
"""In these parts the classifier's place holds a projection head, even where it is one linear layer (MoCo)."""


@dataclass(frozen=True, slots=True)
class ResolvedWeights:
    """Weights and what is known of them.

    Args:
        state_dict: On the CPU.
        sha256: Hash of their file.
        source: The user's text, for messages and the manifest.
        mean: Per channel, of images in [0, 1], or None if not known.
        std: Per channel, or None if not known.
        size: (H, W) they expect, or None if not known.
        class_names: In the order of the logits, or None if not known.
        license: One sentence, or None if not known.
    """

    state_dict: dict[str, Tensor]
    sha256: str
    source: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    class_names: tuple[str, ...] | None = None
    license: str | None = None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of loading weights into a network.

    Args:
        num_classes_in_weights: Rows of their classifier, or None: they have none.
        head_replaced: True if the network kept its own, random classifier because theirs has other classes.
        dropped: Keys of theirs that the network has no place for: a classifier or a projection head.
    """

    num_classes_in_weights: int | None
    head_replaced: bool
    dropped: tuple[str, ...] = ()


def resolve(
    spec: str, model: str, *, progress: bool = False, connect_s: float | None = None
) -> ResolvedWeights:
    """Finds and reads weights.

    Args:
        spec: A .safetensors, .pt or .pth file; a run folder; or a name that the network's family publishes
            weights under (`IMAGENET1K_V2`). What exists on the disk goes before a name.
        model: The `FAMILY/NAME` they are for.
        progress: True: shows a download.
        connect_s: Limit in seconds until the server of published weights answers; None: see `fetch`.

    Raises:
        WeightsError: No such file or name, or it holds no weights.
        DownloadError: Published weights cannot be fetched.
    """
    path = expand_home(spec, "weights")
    if path.is_dir():
        return _from_run(path, spec)
    if path.is_file():
        config = path.parent / "config.json"
        # A student that kdcompress wrote brings what it expects of its images.
        if path.name == "student.safetensors" and config.is_file():
            return _from_run(path.parent, spec)
        return ResolvedWeights(read_state_dict(path), sha256_of(path), spec)
    if path.name.lower().endswith(SUFFIXES) or len(path.parts) > 1:
        raise WeightsError(f"no weights file {spec!r}")
    family = family_of(model)
    name = model[len(family) + 1 :]
    pretrained: Pretrained = discovery.load("family", family).pretrained(name, spec, progress, connect_s)
    return ResolvedWeights(
        state_dict=pretrained.state_dict,
        sha256=pretrained.sha256,
        source=spec,
        mean=pretrained.mean,
        std=pretrained.std,
        size=pretrained.size,
        class_names=pretrained.class_names,
        license=pretrained.license_note,
    )


def identity(spec: str) -> str:
    """Tells weights apart without loading them: the hash of their file, or the name they are published by.

    Args:
        spec: See `resolve`.

    Raises:
        UserError: The file cannot be read.
    """
    path = expand_home(spec, "weights")
    file = path / "student.safetensors" if path.is_dir() else path
    return sha256_of(file) if file.is_file() else spec


def default_weights(model: str) -> str | None:
    """Returns the name of the best weights that the network's family publishes, or None; fetches nothing."""
    family = family_of(model)
    function = getattr(discovery.load("family", family), "default_weights", None)
    name: str | None = None if function is None else function(model[len(family) + 1 :])
    return name


def load_into(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    allow_other_head: bool,
    headless: bool = False,
) -> LoadResult:
    """Loads every tensor into its place, or leaves the network as it was.

    A self-supervised checkpoint's projection head is left out, like a classifier of other classes.

    Args:
        network: Changed in place.
        state: Returned by `read_state_dict`.
        source: Named in messages.
        allow_other_head: True: weights with another number of classes, or without a classifier, are
            accepted; the network's own classifier then stays as it is.
        headless: True: the network was built without a classifier; a classifier or projection head that
            the weights have in its place is left out.

    Raises:
        WeightsError: They do not fit; the first missing, unexpected and mis-shaped keys are listed.
        NonFiniteWeights: A value is not finite.
    """
    own = network.state_dict()
    state, in_pretraining = _of_network(own, state)
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    misshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    places = _emptied_places(network, state) if headless else _classifier(network)
    head = {key for key in own if key.startswith(places)} if places else set()
    dropped = tuple(key for key in state if key not in own and key.startswith((*places, *_PROJECTIONS)))
    unexpected = [key for key in state if key not in own and key not in dropped]
    classes = None if in_pretraining else _rows(state, places)
    same_inputs = all(
        state[key].shape[1:] == own[key].shape[1:] and state[key].ndim == own[key].ndim for key in misshaped
    )
    if unexpected or not head.issuperset(missing + misshaped) or not same_inputs:
        raise WeightsError(_mismatch(source, own, state, missing, unexpected, misshaped))
    replaced = bool(missing or misshaped or (in_pretraining and head))
    if replaced and not allow_other_head:
        expected = _rows(own, places)
        have = f"{classes} classes" if classes is not None else "no classifier"
        raise WeightsError(
            f"{source}: these weights have {have}, the network has {expected}; "
            "with teacher.train: auto they would be fine-tuned to the data"
        )
    state = {key: tensor for key, tensor in state.items() if key not in dropped}
    for key, tensor in state.items():
        if not is_finite(tensor):
            raise NonFiniteWeights(
                f"{source}: {key!r} holds values that are not finite (NaN or infinite); take weights from "
                "before the training diverged"
            )
    kept = {key: own[key] for key in head} if replaced else {}
    counters = {key: own[key] for key in own if key not in state and key.endswith(COUNTER)}
    load_state(network, {**state, **counters, **kept})
    return LoadResult(classes, replaced, dropped)


def classifier_classes(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """Counts the classes that weights were trained for.

    Args:
        state: The weights.
        network: One of the architecture they are for, with any number of classes but 0.

    Returns:
        The rows of the tensor that stands where the network's classifier has its own, or None if there is
        none, or only a projection head.
    """
    state, in_pretraining = _of_network(network.state_dict(), state)
    return None if in_pretraining else _rows(state, _classifier(network))


def channels_read(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """Returns the number of image channels that weights read, by the network's first convolution.

    Args:
        state: The weights.
        network: One of the architecture they are for.

    Returns:
        C, or None if the network begins with something else or the weights have no such tensor.
    """
    state, _ = _of_network(network.state_dict(), state)
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = state.get(f"{path}.weight")
            return int(weight.shape[1]) * module.groups if weight is not None and weight.ndim == 4 else None
    return None


def _of_network(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], in_pretraining: bool = False
) -> tuple[Mapping[str, Tensor], bool]:
    """Returns the tensors by the network's own keys, and True if a pretraining's tensors surrounded them."""
    state = _with_prefix_of(own, state)
    if any(key in own for key in state):
        return state, in_pretraining
    for part, beside in _PARTS.items():
        inside = {key.removeprefix(part): tensor for key, tensor in state.items() if key.startswith(part)}
        if inside and all(key.startswith((part, *beside)) for key in state):
            return _of_network(own, inside, in_pretraining or part in _IN_PRETRAINING)
    return state, in_pretraining


def _rows(state: Mapping[str, Tensor], places: tuple[str, ...]) -> int | None:
    weight = state.get(f"{places[0]}weight") if places else None
    return int(weight.shape[0]) if weight is not None and weight.ndim >= 2 else None


def _emptied_places(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Finds the classifier or projection head of the weights in the empty places of a headless network."""
    empty = [f"{path}." for path, module in network.named_modules() if isinstance(module, nn.Identity)]
    # Weights of a norm that this network does without are vectors, and are no head.
    matrices = [key for key, tensor in state.items() if tensor.ndim >= 2]
    return tuple(place for place in empty if any(key.startswith(place) for key in matrices))


def _with_prefix_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # A network whose only child is called `model` lost its prefix when the file was read.
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in own) and not any(key.startswith(prefix) for key in state):
            return {f"{prefix}{key}": tensor for key, tensor in state.items()}
    return state


def _classifier(network: nn.Module) -> tuple[str, ...]:
    """Returns the path of the last linear layer, else convolution, in the order of registration.

    Returns:
        It, as its keys begin; empty if there is none.
    """
    for kind in (nn.Linear, nn.Conv2d):
        paths: list[str] = [path for path, module in network.named_modules() if isinstance(module, kind)]
        if paths:
            return (f"{paths[-1]}.",)
    return ()


def _mismatch(
    source: str,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
) -> str:
    def shapes(key: str) -> str:
        return f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"

    lines = [f"{source}: these weights are not of this network"]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped)):
        if keys:
            named = [shapes(key) if keys is misshaped else key for key in keys[:3]]
            more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
            lines.append(f"{what}: {', '.join(named)}{more}")
    return "\n  ".join(lines)


def _from_run(folder: Path, spec: str) -> ResolvedWeights:
    weights, config = folder / "student.safetensors", folder / "config.json"
    absent = [path.name for path in (weights, config) if not path.is_file()]
    if absent:
        raise WeightsError(f"{folder}: is no finished run folder (no {' and no '.join(absent)})")
    document = read_document(config, WeightsConfig, failure=WeightsError)
    spec_of_input = InputSpec.from_json(document["input"])
    names = document.get("label_names")
    return ResolvedWeights(
        state_dict=read_state_dict(weights),
        sha256=sha256_of(weights),
        source=spec,
        mean=spec_of_input.mean,
        std=spec_of_input.std,
        size=(spec_of_input.height, spec_of_input.width),
        class_names=tuple(map(str, names)) if isinstance(names, list) and names else None,
        license=_licence_of_run(folder / "manifest.json"),
    )


def _licence_of_run(manifest: Path) -> str | None:
    """Returns the licences of what a student was trained from; None if one of them is not known."""
    try:
        document = read_document(manifest, Manifest)
        sources = {"images": document["data"]}
        sources |= {f"{who}'s weights": document[who] for who in ("teacher", "student") if document.get(who)}
        sources |= {f"weights of peer {k}": peer for k, peer in enumerate(document.get("peers", []), 1)}
        if extra := document["data"].get("extra"):
            sources["generated images"] = extra
        # Weights that were drawn or trained there have the licence of the images.
        kept = {
            what: entry.get("license")
            for what, entry in sources.items()
            if "images" in what or entry.get("weights") not in (None, RANDOM) or entry.get("license")
        }
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    if None in kept.values():
        return None
    return "; ".join(f"{what}: {licence}" for what, licence in kept.items())
