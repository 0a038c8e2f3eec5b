"""Every golden file is met, in both precisions, by the code that trains; a file that nobody checks is a
failure."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_checks import CHECKS

FOLDER = Path(os.environ.get("KDCOMPRESS_GOLDEN") or Path(__file__).parent / "golden")
FILES = sorted(FOLDER.glob("*/*.npz"))
# Relative to the largest entry of an array, as each folder's README asks for.
TOLERANCE = {
    "offline": {torch.float64: 1e-9, torch.float32: 1e-4},
    "online": {torch.float64: 1e-9, torch.float32: 1e-4},
    "self": {torch.float64: 1e-10, torch.float32: 1e-4},
}
INPUT_OR_NOTE = ("in_", "hp_", "ref_", "_source", "param_")


class Golden:
    """The arrays of a file, given out in one number format, with a list of what has been compared."""

    def __init__(self, path, dtype):
        self.arrays = np.load(path, allow_pickle=False)
        self.names = list(self.arrays.files)
        self.dtype, self.tolerance = dtype, TOLERANCE[path.parent.name][dtype]
        self.compared = set()
        self.read = set()

    def tensor(self, name):
        self.read.add(name)
        value = torch.from_numpy(self.arrays[name])
        return value.to(self.dtype) if value.is_floating_point() else value

    def number(self, name):
        self.read.add(name)
        return self.arrays[name].item()

    def compare(self, name, got, tolerance=None):
        self.compared.add(name)
        want = torch.from_numpy(np.asarray(self.arrays[name], dtype=np.float64))
        assert got.dtype == self.dtype, f"{name} was computed in {got.dtype}"
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)} instead of {tuple(want.shape)}"
        largest = want.abs().max().item()
        error = (got.detach().double() - want).abs().max().item()
        limit = (tolerance or self.tolerance) * largest if largest else 1e-12
        assert error <= limit, f"{name}: off by {error:.3g}, largest entry {largest:.3g}"


def test_there_are_golden_files():
    assert FILES, f"no golden files under {FOLDER}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}/{p.stem}" for p in FILES])
def test_golden(path, dtype):
    assert path.stem in CHECKS, f"{path.name} has no check in tests/golden_checks.py"
    golden = Golden(path, dtype)
    CHECKS[path.stem](golden, dtype, golden.compare)
    left = [
        n for n in golden.names if n not in golden.compared | golden.read and not n.startswith(INPUT_OR_NOTE)
    ]
    assert not left, f"{path.name} has values that the check never looked at: {left}"
