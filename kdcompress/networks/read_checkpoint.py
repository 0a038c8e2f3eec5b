"""Reading state dictionaries from files without running any code in them."""

from __future__ import annotations

import errno
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdcompress.archives import UNPACKING_ERRORS, reason_of
from kdcompress.errors import WeightsError
from kdcompress.native_paths import utf8_path
from kdcompress.networks.pickle_size import repeats_too_often

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar")
"""Suffixes of files that may hold a state dictionary."""

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "student", "teacher")
"""Keys under which training scripts save the network beside their other state. Averaged weights (`ema`,
`state_dict_ema`, `model_ema`) are left aside for the plain ones."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and wrapper classes put before every key."""

_SETTINGS = (
    "argparse.Namespace",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
)  # fmt: skip
"""Types that training scripts save beside the tensors: options, paths, and figures as numpy numbers."""

_MAX_DEPTH = 4
_MAX_PREFIXES = 8
"""Wrappers around each other; what has more has keys that fit no network."""
_UNPACKED = 8, 64 << 20
"""Most that a pickle may be unpacked: so many times the file, and bytes beside. torch packs nothing."""
TORCH_LOAD_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError, OSError,
    AssertionError, struct.error,
)  # fmt: skip
"""Raised by `torch.load` on bytes that are no checkpoint, beside `pickle.UnpicklingError`."""


_DTYPES = frozenset(
    {
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
        torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    }
)  # fmt: skip
"""Types whose values a network's parameters and buffers can take over."""


class UnreadSetting:
    """Stands where a checkpoint holds a setting that is no tensor: nothing of it was looked at or run."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Takes what the setting would have been made of."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: Path | str) -> Any:
    """Reads all that a checkpoint holds: tensors, plain containers and values, `UnreadSetting` for settings.

    Args:
        path: A file of any name; one that does not end in .safetensors is taken for a pickle. Only tensors
            and plain containers are read from it; code is refused unrun.

    Raises:
        WeightsError: It cannot be read, or must not be.
    """
    path = Path(path)
    _check_file(path)
    return _content(path, _SETTINGS)


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint, by the keys that the network itself gives them.

    Wrappers (`{"state_dict": …}`, `{"model": …}`) and prefixes that every key has (`module.`, `_orig_mod.`,
    `model.`) are taken off.

    Args:
        path: A .safetensors, .pt or .pth file. The latter two are pickles; only tensors and plain containers
            are read from them, code is refused unrun.

    Raises:
        WeightsError: It cannot be read, must not be, or holds no state dictionary.
    """
    path = Path(path)
    _check_file(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise WeightsError(f"{path}: unknown kind of file; expected .safetensors, .pt or .pth")
    content = _content(path)
    found = _unwrap(content)
    if found is None:
        contents = f"a dictionary of {_listed(content)}" if isinstance(content, Mapping) else _kind(content)
        raise WeightsError(
            f"{path}: holds no state dictionary but {contents}; "
            "save one with torch.save(network.state_dict(), FILE)"
        )
    check_plain(found, str(path))
    return _without_prefixes(found)


def check_plain(state: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors of an `unusual_kind`.

    Args:
        state: Tensors by name.
        source: Named in the message.

    Raises:
        WeightsError: There is one.
    """
    for key, tensor in state.items():
        if (kind := unusual_kind(tensor)) is not None:
            raise WeightsError(
                f"{source}: {key!r} is a tensor of the kind {kind}, which cannot be loaded; save it as a "
                "dense tensor of float32"
            )


def unusual_kind(tensor: Tensor) -> str | None:
    """Names the kind of a tensor whose values no network can take over; None: it is a plain one.

    Plain are dense tensors of real numbers that were saved with all their values: not nested, sparse,
    quantised, complex or expanded ones, nor those of the device `meta`.
    """
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta:
        return "meta (without values)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "expanded (a few values that stand for many)"
    return None if tensor.dtype in _DTYPES else str(tensor.dtype).removeprefix("torch.")


def is_finite(tensor: Tensor) -> bool:
    """Tells if a plain tensor has neither NaN nor infinite values as float32."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.to(torch.float32)).all())


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {what}; expected a .safetensors, .pt or .pth file")


def _content(path: Path, unread: tuple[str, ...] = ()) -> Any:
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: is empty; save or fetch it again")
    return _safetensors(path) if path.suffix.lower() == ".safetensors" else _pickle(path, unread)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with utf8_path(path) as place:
            return load_file(place, device="cpu")
    except SafetensorError as error:
        raise WeightsError(f"{path}: is truncated or no safetensors file ({error})") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None


def _pickle(path: Path, unread: tuple[str, ...]) -> Any:
    # Not the real classes: even those of numpy are more than a stranger's file should get to call.
    stand_ins: list[Any] = [(UnreadSetting, name) for name in unread]
    size = oversize(path)
    if size is not None:
        raise WeightsError(
            f"{path}: would take {size / 1e6:,.0f} MB unpacked, so it was not read; save it with torch.save"
        )
    try:
        repeats = repeats_too_often(path)
    except PermissionError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except UNPACKING_ERRORS as error:
        raise WeightsError(f"{path}: is truncated or no checkpoint of PyTorch ({reason_of(error)})") from None
    if repeats:
        raise WeightsError(
            f"{path}: the same tuples or lists stand in it too many times, so it was not read; save the "
            "tensors alone with torch.save(network.state_dict(), FILE)"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            # torch warns of TorchScript archives before it refuses them; the refusal is enough.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise WeightsError(
                f"{path}: is damaged or no checkpoint of PyTorch; fetch or save it again"
            ) from None
        raise WeightsError(
            f"{path}: holds Python objects ({named.group(1)}) beside tensors, so it was refused and nothing "
            "in it was run; save the tensors alone with torch.save(network.state_dict(), FILE)"
        ) from None
    except TORCH_LOAD_ERRORS as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: sought beyond the end
            raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
        reason = str(error).strip().split("\n", 1)[0].split(". ", 1)[0] or type(error).__name__
        raise WeightsError(f"{path}: is truncated or no checkpoint of PyTorch ({reason})") from None


def oversize(path: Path) -> int | None:
    """Returns the bytes of an archive's members if they become far larger than the file; else None."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, struct.error, NotImplementedError):
        return None  # of torch's old format, or damaged, which its reader says
    times, beside = _UNPACKED
    return size if size > times * path.stat().st_size + beside else None


def _unwrap(content: Any, depth: int = 0) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or not content or depth == _MAX_DEPTH:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return dict(content)
    if {"student", "teacher"} <= content.keys() and "dino_loss" in content:
        content = {"teacher": content["teacher"]}  # the average of its students is what DINO evaluates
    inner = (_unwrap(content[key], depth + 1) for key in _WRAPPERS if key in content)
    return next((found for found in inner if found is not None), None)


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # torch.optim.swa_utils.AveragedModel adds its counter to the prefixed keys.
    if "n_averaged" in state and all(key.startswith("module.") for key in state if key != "n_averaged"):
        state = {key: value for key, value in state.items() if key != "n_averaged"}
    for _ in range(_MAX_PREFIXES):
        shared = next((p for p in PREFIXES if state and all(k.startswith(p) and k != p for k in state)), None)
        if shared is None:
            break
        state = {key.removeprefix(shared): value for key, value in state.items()}
    return state


def _listed(content: Mapping[Any, Any]) -> str:
    keys = [repr(key) for key in content]
    return (", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")) or "nothing"


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
