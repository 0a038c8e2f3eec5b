"""A picture becomes a square in one way: in training, evaluation, the code of the card and a graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from kdcompress.data.crop import fitted_size
from kdcompress.data.dataset import open_data
from kdcompress.data.input_spec import BORDER, InputSpec
from kdcompress.data.source import FolderSource
from kdcompress.deploy import image_graph
from kdcompress.recipe import DataSection, load_recipe
from kdcompress.report.usage import _images, preprocessing

SIDE = 16
SIZES = [(40, 60), (60, 41), (16, 16), (12, 30), (90, 40), (33, 17), (200, 301), (3, 64), (64, 1)]
FIRST = torch.tensor([0])


def spec_of(fit, channels=3):
    mean, std = (0.5,) * channels, (0.25,) * channels
    if fit == "crop":
        return InputSpec(channels, SIDE, SIDE, mean, std, resize=18, crop=SIDE)
    return InputSpec(channels, SIDE, SIDE, mean, std, fit=fit, border=BORDER if fit == "pad" else None)


def picture(width, height, seed=0, channels=3):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(rows / (3 + k) + columns / (4 + seed) + k) for k in range(channels)]
    pixels = np.stack(waves, axis=2).astype(np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])


def source_of(folder, image, fit, channels=3):
    image.save(folder / "a.png")
    return FolderSource(folder, ("a.png",), torch.zeros(1), SIDE, channels, fit=fit)


def evaluated(folder, image, fit, channels=3):
    return source_of(folder, image, fit, channels).evaluation_images(FIRST)[0].numpy()


def test_whole_keeps_what_lies_at_the_edges_and_crop_does_not(tmp_path):
    wide = Image.new("RGB", (64, 32))
    wide.paste((255, 0, 0), (0, 0, 8, 32))
    assert evaluated(tmp_path, wide, "crop")[0].max() == 0
    for fit in ("whole", "pad"):
        assert evaluated(tmp_path, wide, fit)[0].max() == 255


def test_whole_squeezes_the_picture_into_the_square(tmp_path):
    image = picture(48, 20)
    expected = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(evaluated(tmp_path, image, "whole"), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_pad_keeps_the_proportions_on_a_grey_border(tmp_path, channels):
    made = evaluated(tmp_path, picture(64, 16, channels=channels), "pad", channels)
    inner = picture(64, 16, channels=channels).resize((16, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(made[:, 6:10], np.atleast_3d(np.asarray(inner)).transpose(2, 0, 1))
    assert (made[:, :6] == BORDER).all()
    assert (made[:, 10:] == BORDER).all()


def test_the_longer_side_fits_and_the_shorter_has_a_pixel_at_least():
    assert fitted_size((64, 16), 16) == (16, 4)
    assert fitted_size((10, 30), 16) == (5, 16)
    assert fitted_size((1, 500), 16) == (1, 16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fit", ["whole", "pad"])
def test_the_code_of_the_card_makes_the_pixels_of_the_evaluation(tmp_path, monkeypatch, fit, size, channels):
    image = picture(*size, channels=channels)
    expected = evaluated(tmp_path, image, fit, channels)
    image.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    values = {"Image": Image, "np": np}
    code = _images(spec_of(fit, channels)).replace("image.jpg", "image.png")
    exec(compile(code, "snippet", "exec"), values)
    assert values["images"].shape == (1, channels, SIDE, SIDE)
    assert np.array_equal(np.rint(255 * values["images"][0]), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fit", ["crop", "whole", "pad"])
def test_the_graph_makes_the_pixels_of_the_evaluation(tmp_path, fit, size):
    image = picture(*size)
    expected = evaluated(tmp_path, image, fit)
    value = helper.make_tensor_value_info
    images = value("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    logits = value("logits", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    graph = helper.make_graph([helper.make_node("Neg", ["images"], ["logits"])], "net", [images], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    whole = image_graph.with_preprocessing(model, spec_of(fit), (40, 60))
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(image_graph.with_pixels(whole), providers=providers)
    (got,) = session.run([image_graph.PIXELS], {"images": np.asarray(image)[None]})
    assert got.shape == (1, 3, SIDE, SIDE)
    assert np.abs(got[0] - expected).max() <= 1


@pytest.mark.parametrize("fit", ["whole", "pad"])
def test_a_training_view_is_a_part_of_what_the_evaluation_sees(tmp_path, fit):
    # Left half red, right half blue: after either fit the halves meet in the middle, over the whole height.
    image = Image.new("RGB", (80, 20), (255, 0, 0))
    image.paste((0, 0, 255), (40, 0, 80, 20))
    source = source_of(tmp_path, image, fit)
    for view in range(40):
        made = source.training_images(FIRST, view, 0)[0].numpy().astype(int)
        assert made.shape == (3, SIDE, SIDE)
        assert np.array_equal(made, source.training_images(FIRST, view, 0)[0].numpy())
        of_picture = np.abs(made - BORDER).max(axis=0) > 20
        assert of_picture.any()
        if fit == "whole":
            assert of_picture.mean() > 0.8


def test_a_training_view_of_the_whole_square_is_the_square(tmp_path, monkeypatch):
    for fit in ("whole", "pad"):
        source = source_of(tmp_path, picture(60, 24), fit)
        monkeypatch.setattr("kdcompress.data.source.crop_box", lambda *a: ((0, 0, a[3], a[4]), False))
        view, square = source.training_images(FIRST, 0, 0), source.evaluation_images(FIRST)
        assert (view.int() - square.int()).abs().float().mean() < 3


def test_a_central_crop_is_recorded_as_before_there_was_a_choice():
    document = spec_of("crop").to_json()
    assert list(document) == [
        "channels", "height", "width", "mean", "std", "resize", "crop", "interpolation",
    ]  # fmt: skip
    assert InputSpec.from_json(document) == spec_of("crop")


@pytest.mark.parametrize("fit", ["whole", "pad"])
def test_another_fit_is_recorded_and_read_back(fit):
    document = spec_of(fit).to_json()
    assert (document["fit"], document["resize"], document["crop"]) == (fit, None, None)
    assert ("border" in document) == (fit == "pad")
    assert InputSpec.from_json(document) == spec_of(fit)
    words = preprocessing(spec_of(fit))
    assert ("a square of the grey 114" if fit == "pad" else "squeeze all of the picture to 16×16") in words


def test_a_fit_that_is_not_known_is_refused():
    document = {**spec_of("whole").to_json(), "fit": "stretch"}
    with pytest.raises(TypeError, match="expected one of crop, whole, pad"):
        InputSpec.from_json(document)


@pytest.mark.parametrize("fit", ["crop", "whole", "pad"])
def test_the_data_of_a_recipe_is_opened_and_described_as_it_says(tmp_path, fit):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(12):
            Image.new("RGB", (40, 20), (number, 90, len(name))).save(tmp_path / name / f"{number}.png")
    recipe = load_recipe("resnet101-to-resnet18", [f"data.resize={fit}", f"data.root={tmp_path}"])
    data = open_data(recipe.data.model_copy(update={"image_size": SIDE}))
    assert {source.fit for source in (data.train, data.held_out, data.test)} == {fit}
    spec = data.input_spec()
    assert (spec.fit, spec.border) == (fit, BORDER if fit == "pad" else None)
    assert (spec.resize, spec.crop) == ((18, SIDE) if fit == "crop" else (None, None))


def test_pictures_in_memory_are_described_too():
    spec = open_data(DataSection(dataset="digits", resize="whole")).input_spec()
    assert (spec.fit, spec.resize, spec.crop) == ("whole", None, None)
