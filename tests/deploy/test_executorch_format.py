"""ExecuTorch: the program, what is in it, what it refuses, and the same proof as for ONNX."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, trained_student

from kdcompress.bench import runtimes
from kdcompress.bench.measure import Artefact, Protocol, measure
from kdcompress.deploy.files import check_installed
from kdcompress.deploy.formats import executorch, onnx
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.ship import Subject, ship
from kdcompress.errors import UserError

installed = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="executorch is not installed"
)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    formats = ["onnx", "safetensors", "executorch"]
    metadata = {"recipe": "tiny", "teacher": "none"}
    told = ship(Subject(trained_student(), MODEL, SPEC, CLASSES, batches, metadata), folder, formats=formats)
    return folder, told


@installed
def test_it_is_the_network_with_its_normalisation_and_passes_every_gate(shipped):
    folder, told = shipped
    names = {gate.gate for gate in told.gates}
    assert {"executorch_no_paths", "executorch_batch", "executorch_parity_test_split"} <= names
    assert told.student["file"] == "student.onnx"
    file = executorch.open_(folder / "student.pte")
    x = images(40).numpy()  # more than it takes at once
    assert 3 <= file.largest < 40
    expected = Deployed(trained_student(), SPEC).eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(file(x), expected, rtol=1e-4, atol=1e-5)


@installed
def test_the_program_tells_what_the_onnx_file_tells_and_its_size(shipped):
    folder, _ = shipped
    told = executorch.open_(folder / "student.pte").metadata
    size = {key: int(told.pop("kdcompress." + key)) for key in ("params", "macs")}
    assert told == onnx.open_(folder / "student.onnx").metadata
    assert json.loads(told["kdcompress.labels"]) == list(CLASSES)
    assert size == {"params": 77717, "macs": 3125568}


@installed
def test_equal_weights_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        executorch.write(trained_student(), SPEC, tmp_path / f"{name}.pte", metadata={"labels": "[]"})
    assert (tmp_path / "a.pte").read_bytes() == (tmp_path / "b.pte").read_bytes()


@installed
def test_another_image_size_and_a_damaged_file_are_one_line(shipped, tmp_path):
    file = executorch.open_(shipped[0] / "student.pte")
    with pytest.raises(UserError, match="fails on images of 3×8×8: it takes 3×16×16"):
        file(np.zeros((1, 3, 8, 8), np.float32))
    (tmp_path / "a.pte").write_bytes(b"no program")
    with pytest.raises(UserError, match=r"a\.pte: ExecuTorch cannot load it") as caught:
        executorch.open_(tmp_path / "a.pte")
    assert "\n" not in str(caught.value)


@installed
def test_it_is_timed_by_the_same_code(shipped):
    folder, _ = shipped
    artefacts = [
        Artefact("student", folder / "student.onnx", network="s"),
        Artefact("program", folder / "student.pte", network="s"),
    ]
    short = Protocol(block_s=0.02, turns=1, min_calls=2, warmup_s=0)
    document = measure(artefacts, rounds=1, images=images(5).numpy(), protocol=short)
    assert document["failures"] == []
    result = next(r for r in document["results"] if r["artefact"] == "program")
    assert (result["runtime"], result["precision"]) == ("executorch", "fp32")
    assert result["parity"]["max_err_over_spread"] < 1e-3


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="executorch is installed")
def test_a_missing_package_is_said_with_how_to_get_it(tmp_path):
    line = r"pip install 'kdcompress\[executorch\]'"
    with pytest.raises(UserError, match=f"--format: executorch needs executorch: {line}"):
        check_installed(["onnx", "executorch"], "--format")
    with pytest.raises(UserError, match=line):
        executorch.write(trained_student(), SPEC, tmp_path / "a.pte", metadata={})
    with pytest.raises(UserError, match=line):
        executorch.open_(tmp_path / "a.pte")
    with pytest.raises(UserError, match=line):
        runtimes.check_runtime("executorch")
    assert list(tmp_path.iterdir()) == []
