"""Every golden file is met, in both precisions, by the code that trains; a file that nobody checks is a
failure."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
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
RESULTS = {"offline": ("loss", "out_", "grad_"), "online": ("out_", "grad_")}
"""First letters of the names of arrays that hold results; in `self` all that INPUTS_OF_SELF does not name."""
INPUTS_OF_SELF = {
    # File: name patterns. The names of this folder do not tell inputs from results.
    "at_pair": "shallow deep",
    "byot_journal": "labels T alpha lam logits_? feat_? adapt_?_?",
    "byot_luanyunteng": "labels T alpha beta logits_? feat_?",
    "byot_selfkdlib": "labels T logits_? fmap_?",
    "cluster_metrics": "labels *_clusters knn_train knn_test knn_train_labels knn_test_labels knn_k knn_tau",
    "cskd": "logits logits_pair labels T lam",
    "ddgsd_paper_transcription": "logits_? emb_? labels T lmbda mu",
    "ddgsd_selfkdlib": "logits_? emb_? labels T mu",
    "ddgsd_youngerous": "logits_? labels T lmbda mu",
    "dlb": "T alpha weight views_? labels_?",
    "frskd": "logits teacher_logits labels T alpha beta feat_? teacher_feat_*",
    "mixskd": "labels index mix_lambda T teacher_logits_* logits_? feat_? disc_?_[wb]?",
    "moco_infonce": "xq xk wq bq wk_before bk_before queue_before T m",
    "pskd": "labels alpha_T total_epochs *_logits_by_sample *_order",
    "sad_enet_atgen": "x1 x2 x3",
    "sad_selfkdlib": "feat_? weight",
    "scd_reconstruction": "feat_?",
    "snapshot_transcription": "logits teacher_logits labels *_lambda_s *_lambda_t lr_i*",
    "spkd_pair": "shallow deep",
    "tfkd": "logits teacher_logits labels *_alpha *_T *_multiplier ls_eps",
    "tfkd_selfkdlib": "logits labels eps T",
    "zipf_dense": "lam fmap4 labels fc4_?",
    "zipf_dense_multi": "lam alpha fmap? labels fc?_?",
    "zipf_dense_noup": "lam fmap4 labels fc4_?",
    "zipf_rank": "logits labels",
}
VOTES = {
    "min_vote_gap": "a note: rounding cannot change a vote",
    "votes": "the product counts votes; the check counts these, and both are equal",
}
PAIRS = {"out_weight_order": "names the pairs of the other arrays, and the check reads them in its order"}
NOT_REPRODUCED = {
    # File: {name pattern: why the result is not compared with what the product computes}.
    "offline/ctkd": {"out_schedule_epoch": "the epochs at which the other out_schedule_* are compared"},
    "offline/dkd_learnable_temperature": {
        "out_reference_gradient_is_nan": "a note on the authors' form; ours gives a number, which is compared"
    },
    "online/lmcl_inbatch_K2": PAIRS,
    "online/lmcl_inbatch_K3": PAIRS,
    "online/lmcl_memory": PAIRS,
    "online/lmcl_meta_step": {
        "out_hypergrad_authors_*": "lacks a factor, see the docstring of LMCL; the exact one is compared"
    },
    "online/mcl_inbatch": {
        f"out_single_K?_{term}": "NaN: a class stands in the batch once, and our code leaves that anchor out"
        for term in ("vcl", "icl", "total", "unweighted_sum")
    },
    "self/cluster_metrics": {"knn_ranking": "classes without a vote are in any order; the check sorts by it"},
    "self/zipf_dense": VOTES,
    "self/zipf_dense_multi": VOTES,
    "self/zipf_dense_noup": VOTES,
}


class Golden:
    """The arrays of a file, given out in one number format, with lists of those read and those compared."""

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

    def compare(self, name, got, tolerance=None, limit=None):
        """Fails unless `got` is the stored array.

        Args:
            name: Name of the array.
            got: What the product computes.
            tolerance: Largest error, as a share of the largest entry; None: that of the folder.
            limit: Largest error itself, in place of `tolerance`.
        """
        self.compared.add(name)
        want = torch.from_numpy(np.asarray(self.arrays[name], dtype=np.float64))
        assert got.dtype == self.dtype, f"{name} was computed in {got.dtype}"
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)} instead of {tuple(want.shape)}"
        largest = want.abs().max().item()
        error = (got.detach().double() - want).abs().max().item()
        if limit is None:
            limit = (tolerance or self.tolerance) * largest if largest else 1e-12
        assert error <= limit, f"{name}: off by {error:.3g}, largest entry {largest:.3g}"

    def equal(self, name, got):
        """Fails unless the entries of `got` are those of the stored array: indices, flags or words."""
        self.compared.add(name)
        want = self.arrays[name].tolist()
        got = got.tolist() if isinstance(got, torch.Tensor) else got
        assert got == want, f"{name}: {got} instead of {want}"


def is_result(path, name):
    """Tells if an array holds what the product must compute."""
    if name.startswith(INPUT_OR_NOTE):
        return False
    if path.parent.name != "self":
        return name.startswith(RESULTS[path.parent.name])
    return not any(fnmatchcase(name, pattern) for pattern in INPUTS_OF_SELF[path.stem].split())


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
    exceptions = NOT_REPRODUCED.get(f"{path.parent.name}/{path.stem}", {})
    excepted = {pattern: {n for n in golden.names if fnmatchcase(n, pattern)} for pattern in exceptions}
    not_compared = {n for n in golden.names if n not in golden.compared and is_result(path, n)}
    left = sorted(not_compared.difference(*excepted.values()))
    assert not left, f"{path.name}: {left} are never compared; if they cannot be, NOT_REPRODUCED says why"
    stale = [pattern for pattern, names in excepted.items() if not names or names & golden.compared]
    assert not stale, f"{path.name}: NOT_REPRODUCED has {stale}, which are compared or do not exist"


def test_the_tables_of_arrays_name_files_that_exist():
    files = {f"{path.parent.name}/{path.stem}" for path in FILES}
    assert NOT_REPRODUCED.keys() <= files
    assert {f"self/{stem}" for stem in INPUTS_OF_SELF} == {name for name in files if name.startswith("self/")}
