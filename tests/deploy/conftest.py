from __future__ import annotations

import pytest
from small_student import CLASSES, MODEL, SPEC, batches, trained_student
from spoilt import TwoLayers, written

from kdcompress.deploy.ship import Subject, ship


@pytest.fixture(scope="session")
def student():
    return trained_student()


@pytest.fixture(scope="session")
def run(student, tmp_path_factory):
    """A folder with a shipped student, and what `ship` said of it; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    metadata = {"recipe": "tiny", "teacher": "none"}
    formats = ["onnx", "safetensors"]
    return folder, ship(Subject(student, MODEL, SPEC, CLASSES, batches, metadata), folder, formats=formats)


@pytest.fixture(scope="session")
def quiet_file(tmp_path_factory):
    """The `student.onnx` of two layers that int8 suits."""
    return written(TwoLayers(), tmp_path_factory.mktemp("quiet") / "student.onnx")


@pytest.fixture(scope="session")
def loud_file(tmp_path_factory):
    """The same with a channel that takes nearly all of its tensor's levels."""
    return written(TwoLayers(loud=200), tmp_path_factory.mktemp("loud") / "student.onnx")
