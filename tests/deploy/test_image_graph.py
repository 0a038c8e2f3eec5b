"""`student.image.onnx`: pixels as the evaluation's transform makes them, from files; what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from small_student import CLASSES, MODEL, SPEC, batches, trained_student

from kdcompress import load
from kdcompress.bench.measure import Artefact, Protocol, measure
from kdcompress.data.input_spec import InputSpec
from kdcompress.data.source import FolderSource, MemorySource
from kdcompress.deploy import image_gates, image_graph
from kdcompress.deploy.derived import derived_files, failure, place
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.graph_size import graph_facts
from kdcompress.deploy.ship import Subject, ship
from kdcompress.errors import GateFailed, UserError
from kdcompress.export import image_file as image_input
from kdcompress.export.derived import derived_request
from kdcompress.progress import Progress
from kdcompress.schemas.config import GraphImages

RESIZE, SIDE = 18, 16


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some grain."""
    draw = np.random.RandomState(seed)
    coarse = Image.fromarray((draw.rand(5, 5, 3) * 255).astype(np.uint8)).resize((width, height), 3)
    return (
        (np.asarray(coarse).astype(int) + draw.randint(-20, 20, (height, width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image files of many sizes: tall, wide, small, turned by EXIF, grey."""
    root = tmp_path_factory.mktemp("photos")
    sizes = [(40, 60), (60, 41), (16, 16), (12, 30), (90, 40), (33, 17), (200, 301), (18, 18), (17, 64)]
    for number, (height, width) in enumerate(sizes):
        picture, exif = Image.fromarray(photo(height, width, number)), Image.Exif()
        if number == 1:
            exif[0x0112] = 6
        if number == 2:
            picture = picture.convert("L")
        picture.save(root / f"{number}.jpg", quality=95, exif=exif)
    names = tuple(f"{number}.jpg" for number in range(len(sizes)))
    labels = torch.arange(len(names)) % len(CLASSES)
    return FolderSource(root, names, labels, SIDE, 3, "none", SIDE / RESIZE)


def image_made(run, source):
    makers = [image_input.image_maker(source)]
    with derived_files(run, makers, {}, Progress(quiet=True)) as files:
        return place(files, run)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory, folder):
    run = tmp_path_factory.mktemp("run")
    ship(Subject(trained_student(), MODEL, SPEC, CLASSES, batches, {"recipe": "tiny"}), run, formats=["onnx"])
    return run, image_made(run, folder)


def figure(result, name):
    return next(gate for gate in result.gates if gate.gate == name)


def test_image_files_give_the_pixels_and_classes_of_the_evaluation(made):
    run, result = made
    assert result.passed
    assert result.path == run / "student.image.onnx"
    assert figure(result, "image_pixels_max").figure <= 1
    assert figure(result, "image_pixels_mean").figure < 0.1
    assert figure(result, "image_outputs").figure < 0.05
    assert figure(result, "image_top1").figure == 1
    told = json.loads((run / "gates.json").read_text())["gates"]
    assert "image_batch_invariance" in {gate["gate"] for gate in told}
    assert "parity_batch_1" in {gate["gate"] for gate in told}


def test_the_input_is_a_batch_of_images_of_any_size(made):
    run, _ = made
    file, base = onnx_format.open_(run / "student.image.onnx"), onnx_format.open_(run / "student.onnx")
    assert file.input_shape == ("batch", "height", "width", 3)
    assert file.opset == base.opset
    pair = np.stack([photo(50, 70, 1), photo(50, 70, 2)])
    outputs = file(pair)
    assert outputs.shape == (2, 5)
    np.testing.assert_allclose(outputs[1:], file(pair[1:]), atol=1e-5)
    # An image of the resized size is only cut: by one pixel at each side, as 18 to 16 is.
    whole = photo(RESIZE, RESIZE, 3)
    cut = whole[1:-1, 1:-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    np.testing.assert_allclose(file(whole[None]), base(cut), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(19, 23), (23, 19), (18, 21), (16, 40), (40, 16), (101, 37)])
def test_odd_margins_are_cut_where_the_evaluation_cuts_them(made, tmp_path, size):
    Image.fromarray(photo(*size)).save(tmp_path / "a.png")
    source = FolderSource(tmp_path, ("a.png",), torch.zeros(1), SIDE, 3, "none", SIDE / RESIZE)
    expected = source.evaluation_images(torch.tensor([0]))[0].numpy()
    model = image_graph.read(made[0] / "student.image.onnx")
    session = onnxruntime.InferenceSession(image_graph.with_pixels(model), providers=["CPUExecutionProvider"])
    (got,) = session.run([image_graph.PIXELS], {"images": photo(*size)[None]})
    assert np.abs(got[0] - expected).max() <= 1


def test_the_metadata_say_the_contract_and_no_path(made):
    told = onnx_format.open_(made[0] / "student.image.onnx").metadata
    contract = json.loads(told["kdcompress.image_input"])
    assert contract == {
        "dtype": "uint8", "layout": "NHWC", "channels": "RGB", "upright": True,
        "resize": RESIZE, "crop": SIDE,
        "interpolation": "bilinear", "antialias": True, "rounded": True, "typical": [33, 40],
    }  # fmt: skip
    assert told["kdcompress.recipe"] == "tiny"
    assert figure(made[1], "image_one_file_no_paths").passed


def test_the_same_weights_and_images_give_the_same_bytes(made, folder, tmp_path):
    run, _ = made
    before = (run / "student.image.onnx").read_bytes()
    assert image_made(run, folder).passed
    assert (run / "student.image.onnx").read_bytes() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_memory_are_checked_as_files_of_several_sizes(channels):
    pictures = torch.stack([torch.from_numpy(photo(SIDE, SIDE, n)).permute(2, 0, 1) for n in range(7)])
    source = MemorySource(pictures[:, :1], torch.arange(7), channels)
    spec = InputSpec(channels, SIDE, SIDE, (0.5,) * channels, (0.5,) * channels)
    with image_input._images(source, spec) as (images, told):
        assert "JPEG" in told
        assert len({checked.image.shape for checked in images}) == 5
        assert {checked.image.shape[2] for checked in images} == {channels}
        assert all(checked.expected.shape == (channels, SIDE, SIDE) for checked in images)


class TestWrongGraphs:
    """What the gates are there for."""

    @pytest.fixture
    def images(self, folder):
        with image_input._images(folder, SPEC) as (images, _):
            yield images

    def proved(self, made, images, tmp_path, monkeypatch, change):
        right = image_graph.with_preprocessing

        def wrong(*arguments):
            model = right(*arguments)
            change(model)
            return model

        monkeypatch.setattr(image_graph, "with_preprocessing", wrong)
        path = tmp_path / "student.image.onnx"
        gates = image_gates.make(made[0] / "student.onnx", path, SPEC, images, 1.0, "files")
        return {gate.gate for gate in gates if not gate.passed}

    def test_a_resize_without_antialias_fails(self, made, images, tmp_path, monkeypatch):
        def change(model):
            for node in model.graph.node:
                if node.op_type == "Resize":
                    kept = [a for a in node.attribute if a.name not in {"antialias", "exclude_outside"}]
                    del node.attribute[:]
                    node.attribute.extend(kept)

        lost = self.proved(made, images, tmp_path, monkeypatch, change)
        assert {"image_pixels_max", "image_pixels_mean"} <= lost

    def test_a_crop_that_is_off_by_a_pixel_fails(self, made, images, tmp_path, monkeypatch):
        def change(model):
            two = next(t for t in model.graph.initializer if t.name == "preprocess/two")
            two.CopyFrom(onnx.numpy_helper.from_array(np.array([3]), two.name))

        assert "image_pixels_max" in self.proved(made, images, tmp_path, monkeypatch, change)

    def test_other_values_fail_though_the_pixels_are_right(self, made, images, tmp_path, monkeypatch):
        def change(model):
            largest = next(t for t in model.graph.initializer if t.name == "preprocess/largest")
            largest.CopyFrom(onnx.numpy_helper.from_array(np.array(200, np.float32), largest.name))

        assert "image_outputs" in self.proved(made, images, tmp_path, monkeypatch, change)


def test_a_file_that_fails_is_set_aside(made, folder, tmp_path, monkeypatch):
    for name in ("student.onnx", "config.json", "golden.npz", "gates.json"):
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    (tmp_path / "student.image.onnx").write_bytes(b"of an earlier export")
    monkeypatch.setattr(image_gates, "PIXEL_LIMIT", -1.0)
    result = image_made(tmp_path, folder)
    assert not result.passed
    assert not (tmp_path / "student.image.onnx").exists()
    assert (tmp_path / "failed" / "student.image.onnx").is_file()
    assert isinstance(failure([result]), GateFailed)
    assert "image_pixels_max" in str(failure([result]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "bicubic"}, "resized bicubic, for which no ONNX operator"),
        ({"width": 20}, "16×20 pixels, and only the central square"),
        ({"crop": 12}, "only the central square"),
    ],
)
def test_what_the_graph_cannot_do_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        image_graph.check_spec(dataclasses.replace(SPEC, **change), "--embed-preprocess resize")


def test_it_is_refused_before_anything_is_written_without_onnx(tmp_path):
    with pytest.raises(UserError, match=r"made from student\.onnx; add onnx to --format"):
        derived_request(
            tmp_path, ["safetensors"], image=True, int8=False, fp16=False, changes={}, rounds=None
        )


def test_who_wants_resized_images_is_told_to_take_the_other_file(made):
    with pytest.raises(UserError, match=r"as they are decoded.*so name student\.onnx"):
        load(made[0] / "student.image.onnx")


def test_its_size_is_that_of_the_network(made):
    run, _ = made
    facts = graph_facts(run / "student.image.onnx", (3, 50, 70))
    base = graph_facts(run / "student.onnx")
    assert (facts.pixels, facts.input_shape) == (True, (3, None, None))
    assert (facts.parameters, facts.macs, facts.precision) == (base.parameters, base.macs, base.precision)


def test_it_is_timed_with_its_preprocessing_and_says_so(made):
    path = made[0] / "student.image.onnx"
    artefact = Artefact("image", path, shape=(3, 50, 70), pixels=True)
    short = Protocol(block_s=0.02, turns=1, min_calls=2, warmup_s=0)
    document = measure([artefact], rounds=1, batch=[1, 2], protocol=short)
    assert document["failures"] == []
    assert [result["batch"] for result in document["results"]] == [1, 2]
    assert document["artefacts"]["image"]["input"]["dtype"] == "uint8"
    said = "image: resizing and normalising an image of 50×70 pixels is timed with the network"
    assert said in document["warnings"]


def test_photographs_of_any_size_make_a_file_that_can_be_read_again():
    photograph = np.broadcast_to(np.zeros(3, np.uint8), (12_000, 16_000, 3))
    height, width = image_gates.typical([image_gates.ReferenceImage(photograph, torch.zeros(3, 8, 8))] * 3)
    assert GraphImages(typical=[height, width]).typical == [height, width]
    assert width / height == pytest.approx(4 / 3, rel=1e-3)
