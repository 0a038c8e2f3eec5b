"""The values that `auto` stands for: what they are, what the user is told, and what a resume keeps."""

from __future__ import annotations

import dataclasses
import socket
from types import SimpleNamespace

import pytest
import torch
from published_weights import MODEL, NAME, publisher

from kdcompress.errors import UserError
from kdcompress.networks.build import build
from kdcompress.recipe import load_recipe
from kdcompress.run import auto, opening
from kdcompress.run.auto import check_cuda_graphs, keep_recorded, resolve_auto
from kdcompress.run.context import Run
from kdcompress.run_folder import same_recipe
from kdcompress.train import precision
from kdcompress.train.processes import Processes


def folder_of(images, channels=3, augment="crop_flip"):
    """A stand-in for opened data of so many labelled images."""
    data = SimpleNamespace(
        channels=channels, train=range(images), labelled=images, extra=None, augment=augment,
        image_size=(8, 8), pools=(),
    )  # fmt: skip
    data.for_method = lambda **_: data
    return data


SMALL = folder_of(2_624)


def resolve(requested, data=SMALL):
    resolution = resolve_auto(requested, data, progress=False)
    return resolution.recipe, resolution.notices


def recipe(*overrides, model=MODEL):
    return load_recipe("quickstart", [f"student.model={model}", *overrides])


@pytest.mark.parametrize(
    ("device", "overrides", "images", "compiled"),
    [
        ("cpu", ["train.epochs=40"], 1_437, False),  # 8 x 8 pixels
        ("cpu", ["train.epochs=100"], 60_000, True),
        ("cpu", ["train.epochs=100", "train.max_steps=50"], 60_000, False),
        ("cuda", ["train.epochs=100"], 60_000, True),
        ("cuda", ["train.epochs=10"], 60_000, False),
    ],
)
def test_compile_is_decided_by_recipe_data_and_device_alone(monkeypatch, device, overrides, images, compiled):
    monkeypatch.setattr(auto, "compiler_problem", lambda device: None)
    data = folder_of(images)
    requested = recipe("student.weights=random", "train.compile=auto", *overrides)
    resolution = resolve_auto(requested, data, progress=False, device=device)
    assert resolution.recipe.train.compile is compiled
    assert f"train.compile: auto is {str(compiled).lower()}: " in " ".join(resolution.notices)
    kept = keep_recorded(requested, resolution.recipe)
    assert kept.train.compile is compiled


def test_without_a_compiler_auto_says_why_and_true_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setattr(auto, "compiler_problem", lambda device: f"needs a compiler for {device}")
    requested = recipe("student.weights=random", "train.compile=auto", "train.epochs=100")
    resolution = resolve_auto(requested, folder_of(60_000), progress=False)
    assert resolution.recipe.train.compile is False
    assert "train.compile: auto is false: it needs a compiler for cpu" in resolution.notices
    with pytest.raises(UserError, match=r"train\.compile: needs a compiler for cpu"):
        resolve_auto(recipe("train.compile=true"), SMALL, progress=False)
    assert resolve_auto(recipe("student.weights=random"), SMALL, progress=False).recipe.train.compile is False


def student(resolved):
    return resolved.student.weights, resolved.student.sha256


def test_few_images_start_from_the_families_published_weights(downloads, monkeypatch):
    with publisher(monkeypatch) as published:
        resolved, notices = resolve(recipe())
    assert student(resolved) == (NAME, published.sha256)
    assert notices == (
        "student.weights: auto: the student starts from IMAGENET1K_V1, since there are only 2,624 training "
        "images; --set student.weights=random starts from random weights",
    )
    assert resolved.replace(student=recipe().student) == recipe()


@pytest.mark.parametrize(
    ("model", "channels", "images"),
    [(MODEL, 3, 100_000), ("timm/resnet18", 1, 2_624), ("cifar/resnet8", 3, 2_624)],
    ids=["many images", "grey images", "no published weights"],
)
def test_others_start_from_random_weights_silently(downloads, monkeypatch, model, channels, images):
    if model.startswith("timm"):
        pytest.importorskip("timm")
    with publisher(monkeypatch) as published:
        data = folder_of(images, channels)
        resolved, notices = resolve(recipe(model=model), data)
    assert (student(resolved), notices, published.requests) == (("random", None), (), 0)


@pytest.mark.parametrize("weights", ["null", "random", NAME, "mine.pth"])
def test_what_the_user_names_is_left_as_it_is(downloads, monkeypatch, weights):
    with publisher(monkeypatch) as published:
        named = recipe(f"student.weights={weights}")
        assert resolve(named) == (named, ())
    assert published.requests == 0


def test_a_server_that_never_answers_is_given_up(downloads, monkeypatch):
    monkeypatch.setattr(auto, "CONNECT_S", 0.3)
    with publisher(monkeypatch, answers=False):
        resolved, (notice,) = resolve(recipe())
    assert student(resolved) == ("random", None)
    assert notice.startswith("student.weights: auto: IMAGENET1K_V1 could not be downloaded within 0.3 s (")
    assert "no connection within 0.3 seconds); the student starts from random weights. " in notice
    assert notice.endswith(" Pass a file with --set student.weights=FILE")
    assert "\n" not in notice


def test_the_limit_is_twenty_seconds():
    assert auto.CONNECT_S == 20


def test_without_network_the_student_starts_from_random_weights(downloads, monkeypatch):
    with publisher(monkeypatch):
        pass  # its address remains
    resolved, (notice,) = resolve(recipe())
    assert student(resolved) == ("random", None)
    assert "could not be downloaded within 20 s (http://127.0.0.1:" in notice
    assert "cannot be reached (Connection refused)" in notice


def test_downloads_that_are_switched_off_are_not_tried(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    resolved, (notice,) = resolve(recipe())
    assert student(resolved) == ("random", None)
    assert "KDCOMPRESS_OFFLINE switches downloads off)" in notice


def test_weights_in_the_cache_need_no_network(downloads, monkeypatch):
    with publisher(monkeypatch) as published:
        first = resolve(recipe())
    assert resolve(recipe()) == first
    assert student(first[0]) == (NAME, published.sha256)


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(downloads, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "file"))
    with publisher(monkeypatch):
        resolved, (notice,) = resolve(recipe())
    assert student(resolved)[0] == "IMAGENET1K_V1"
    assert "IMAGENET1K_V1" in notice
    assert "could not be loaded" not in notice


@pytest.mark.parametrize(
    ("recorded", "requested", "kept"),
    [
        (["student.weights=random"], [], ("random", None)),
        (["student.weights=null"], [], (None, None)),
        (["student.weights=V1", f"student.sha256={'a' * 64}"], [], ("V1", "a" * 64)),
        (["student.weights=V1", f"student.sha256={'a' * 64}"], ["student.weights=V1"], ("V1", "a" * 64)),
        (["student.weights=null"], ["student.weights=random"], (None, None)),
        (["student.weights=random"], ["student.weights=null"], ("random", None)),
    ],
)
def test_a_resume_keeps_the_value_that_the_run_began_with(tmp_path, recorded, requested, kept):
    resumed = keep_recorded(recipe(*requested), recipe(*recorded))
    assert student(resumed) == kept
    same_recipe(recipe(*recorded), resumed, tmp_path)


@pytest.mark.parametrize(
    "requested",
    [
        ["student.weights=V2"],
        ["student.weights=random"],
        ["student.weights=V1", f"student.sha256={'b' * 64}"],
    ],
)
def test_a_resume_from_other_weights_stays_another_recipe(requested):
    recorded = recipe("student.weights=V1", f"student.sha256={'a' * 64}")
    assert keep_recorded(recipe(*requested), recorded) == recipe(*requested)


# ---- colours


@pytest.mark.parametrize(
    ("method", "augment", "said"),
    [
        ("moco", "crop_flip", "saturation, hue and grey of the augmentation moco_v2 are skipped"),
        ("simsiam", "crop_flip", "saturation, hue and grey of the augmentation simsiam are skipped"),
        ("kd", "crop_flip+strong", "saturation and hue of the augmentation crop_flip+strong are skipped"),
        ("kd", "moco_v2", "saturation, hue and grey of the augmentation moco_v2 are skipped"),
    ],
)
def test_colour_operations_that_grey_images_do_not_go_through_are_said_once(method, augment, said):
    teacher = [] if method == "kd" else ["teacher=null"]
    requested = load_recipe("quickstart", teacher, method=method)
    grey = resolve(requested, folder_of(2_624, channels=1, augment=augment))[1]
    assert grey == (f"the images have one channel, so {said}",)
    assert resolve(requested, folder_of(200_000, augment=augment))[1] == ()


def test_an_augmentation_without_colours_says_nothing_of_grey_images():
    assert resolve(load_recipe("quickstart"), folder_of(2_624, channels=1))[1] == ()


@pytest.mark.parametrize(
    ("overrides", "device", "processes", "why"),
    [
        ((), "cpu", 1, "they run on a CUDA device, and this run trains on the CPU"),
        (("train.compile=false",), "cuda", 1, r"add --set train\.compile=true"),
        (
            ("train.accumulate=2",),
            "cuda",
            1,
            r"accumulate is 2, and a batch's graph overwrites the gradients",
        ),
        ((), "cuda", 2, "the run has 2 processes"),
    ],
    ids=["cpu", "uncompiled", "accumulated", "processes"],
)
def test_cuda_graphs_are_refused_where_they_cannot_be_sound(overrides, device, processes, why):
    train = recipe("train.compile=true", "train.cuda_graphs=true", *overrides).train
    with pytest.raises(UserError, match=rf"train\.cuda_graphs: .*{why}.*; or leave it out"):
        check_cuda_graphs(train, device=device, processes=processes)
    check_cuda_graphs(train.model_copy(update={"cuda_graphs": False}), device=device, processes=processes)


def test_cuda_graphs_are_taken_where_they_can_be():
    check_cuda_graphs(
        recipe("train.compile=true", "train.cuda_graphs=true").train, device="cuda", processes=1
    )


def test_a_resume_computes_in_the_format_that_the_run_began_with():
    began = load_recipe("quickstart", ["train.precision=bf16"])
    assert keep_recorded(load_recipe("quickstart"), began).train.precision == "bf16"
    own = load_recipe("quickstart", ["train.precision=fp32"])
    assert keep_recorded(own, began).train.precision == "fp32"


@pytest.mark.parametrize(
    ("native", "student", "resolved"),
    [
        (True, "cifar/resnet8", "bf16"),
        (False, "cifar/resnet8", "fp32"),
        (False, "torchvision/mobilenet_v3_small", "fp32"),
        (True, "torchvision/mobilenet_v3_small", "auto"),  # the teacher in bf16, the student in fp32
    ],
)
def test_the_format_is_resolved_where_it_is_one_for_all_networks(monkeypatch, native, student, resolved):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: native)
    run = Run(load_recipe("quickstart"), None, None, Processes(0, 1, torch.device("cpu")), None, False, "")
    size = {"num_classes": 10, "channels": 3, "image_size": (32, 32)}
    networks = {
        name: SimpleNamespace(network=build(model, **size))
        for name, model in (("student", student), ("teacher", "cifar/resnet14"))
    }
    assert opening._with_precision(run, networks).recipe.train.precision == resolved
    explicit = dataclasses.replace(run, recipe=load_recipe("quickstart", ["train.precision=fp32"]))
    assert opening._with_precision(explicit, networks) is explicit


def test_branches_stay_uncompiled_and_the_run_says_so(monkeypatch):
    monkeypatch.setattr(auto, "compiler_problem", lambda device: None)
    long = ("student.weights=random", "train.epochs=100")
    for method, compiles in (("one", False), ("pcl", False), ("dml", True), ("byot", True)):
        requested = load_recipe("quickstart", [*long, "train.compile=auto"], method=method)
        resolution = resolve_auto(requested, folder_of(60_000), progress=False)
        assert resolution.recipe.train.compile is compiles
        said = f"{method} trains branches of the student, which stay uncompiled"
        assert (said in " ".join(resolution.notices)) is not compiles
    asked = load_recipe("quickstart", [*long, "train.compile=true"], method="one")
    resolution = resolve_auto(asked, folder_of(60_000), progress=False)
    assert resolution.recipe.train.compile is True
    assert "train.compile: one trains branches" in " ".join(resolution.notices)
