"""Self-distillation on clusters, from images without labels to a deployable network."""

from __future__ import annotations

import hashlib
import json
import types

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.data.datasets import digits
from kdcompress.errors import RecipeError
from kdcompress.methods.selfkd.byot import BYOT
from kdcompress.progress import Progress
from kdcompress.recipe import load_recipe, load_recipe_of_data
from kdcompress.run import pseudo_labels
from kdcompress.tasks import CLUSTERS, task_of

RECIPE = """
data: {dataset: digits, labels: none, held_out: 0, batch_size: 64}
student: {model: cifar/resnet8}
pseudo_labels: {clusters: 6, method: {name: simsiam, width: 32}, epochs: 1, starts: 2}
method: {name: byot}
train: {epochs: 1, max_steps: 4, threads: 1}
optim: {lr: 0.05}
bench: {rounds: 1}
"""


def distill(folder, *more, recipe=RECIPE):
    (folder / "recipe.yaml").write_text(recipe)
    arguments = ["distill", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "run"), *more]
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("clusters")
    batches, losses = [], BYOT.losses

    def noted(method, batch):
        batches.append(batch)
        return losses(method, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        patch.setattr(BYOT, "losses", noted)
        result = distill(folder)
    assert result.exit_code == 0, result.stderr
    return types.SimpleNamespace(
        folder=folder, run=folder / "run", stdout=result.stdout, stderr=result.stderr, batches=batches
    )


def read(run, name):
    return json.loads((run / name).read_text())


def weights(run):
    return (run / "student.safetensors").read_bytes()


def test_the_student_tells_clusters_apart_and_is_scored_by_their_best_matching(done):
    student, before = read(done.run, "results.json")["student"], read(done.run, "results.json")["pretraining"]
    assert read(done.run, "labels.json") == [f"cluster {number}" for number in range(6)]
    assert read(done.run, "config.json")["task"] == "clusters"
    for figures in (student, before):
        assert 0 < figures["cluster_accuracy"] <= 1
        assert 0 < figures["nmi"] <= 1
    assert student["top1"] is None
    assert sum(before["sizes"]) == 1_617
    assert len(before["sizes"]) == 6
    assert all(gate["passed"] for gate in read(done.run, "gates.json")["gates"])
    assert "No label was read: 6 clusters of" in done.stdout


def test_both_trainings_and_the_clusters_are_in_the_run_folder(done):
    found = safetensors.torch.load_file(done.run / "checkpoints" / "clusters.safetensors")
    assert found["assigned"].bincount().tolist() == read(done.run, "results.json")["pretraining"]["sizes"]
    assert found["directions"].shape == (64, found["centres"].shape[1])
    assert len(found["centres"]) == 6
    assert torch.allclose(found["centres"].norm(dim=1), torch.ones(6))
    backbone = safetensors.torch.load_file(done.run / "checkpoints" / "pretraining.safetensors")
    student = safetensors.torch.load_file(done.run / "student.safetensors")
    assert student.keys() - backbone.keys() == {"fc.weight", "fc.bias"}
    phases = [json.loads(line)["phase"] for line in (done.run / "log.jsonl").read_text().splitlines()]
    assert phases == ["pretraining", "student"]


def test_features_and_clusters_are_announced_where_there_is_no_terminal(done):
    lines = done.stderr.splitlines()
    counts = read(done.run, "manifest.json")["data"]["counts"]
    assert f"Features of {counts['train']:,} training images" in lines
    assert f"Clustering {counts['train']:,} images into 6 (k-means)" in lines
    assert f"Features of {counts['test']:,} test images" in lines


def test_the_report_and_the_card_say_what_was_done(done):
    for name in ("report.html", "README.md"):
        page = (done.run / name).read_text()
        assert "without labels, on clusters of its features, with byot" in page
        assert "No label was read: 6 clusters of" in page
        assert not any(broken in page for broken in ("None %", ">None<", "nan %"))


def test_the_card_says_that_clusters_are_no_classes(done):
    card = (done.run / "README.md").read_text()
    assert "It sorts images into 6 clusters" in card
    assert "An image classifier" not in card
    (output,) = onnx.load(done.run / "student.onnx").graph.output
    assert f'session.run(["{output.name}"]' in card


def test_labels_of_noise_give_the_same_student(done, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    honest = digits.load_digits()
    noise = np.random.default_rng(0).integers(0, 10, len(honest.target))
    monkeypatch.setattr(
        digits, "load_digits", lambda: types.SimpleNamespace(images=honest.images, target=noise)
    )
    assert distill(tmp_path).exit_code == 0
    assert weights(tmp_path / "run") == weights(done.run)
    # The figures are those of other labels: what follows the training does read them.
    assert read(tmp_path / "run", "results.json")["student"]["nmi"] < 0.1


def test_every_batch_has_equally_many_images_of_each_cluster(done):
    sizes = read(done.run, "results.json")["pretraining"]["sizes"]
    assert min(sizes) >= 11  # a smaller cluster could not give its part of 64
    assert len(done.batches) == 4
    assigned = safetensors.torch.load_file(done.run / "checkpoints" / "clusters.safetensors")["assigned"]
    for batch in done.batches:
        assert torch.equal(batch.labels, assigned[batch.indices])
        assert set(batch.labels.bincount(minlength=6).tolist()) == {10, 11}


def test_another_method_learns_the_clusters_and_ships_its_last_epoch_whatever_the_labels_are(
    tmp_path, monkeypatch
):
    # Images are held out, and no label may decide which they are or which epoch ships.
    more = (
        "--method", "cskd", "--set", "data.held_out=0.1", "--set", "data.batch_size=512",
        "--set", "train.epochs=2",
    )  # fmt: skip
    honest = digits.load_digits()
    noise = np.random.default_rng(0).integers(0, 10, len(honest.target))
    students = []
    for name, target in (("honest", honest.target), ("noise", noise)):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv("KDCOMPRESS_CACHE", str(folder / "cache"))
        labelled = types.SimpleNamespace(images=honest.images, target=target)
        monkeypatch.setattr(digits, "load_digits", lambda labelled=labelled: labelled)
        result = distill(folder, *more)
        assert result.exit_code == 0, result.stderr
        lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        assert [line["held_out"] for line in lines] == [None] * 3
        assert set(lines[-1]["losses"]) == {"ce", "class_wise"}
        training = read(folder / "run", "results.json")["training"]
        assert (training["epoch"], training["best"]) == (2, None)
        assert sum(read(folder / "run", "results.json")["pretraining"]["sizes"]) == 1_437
        students.append(weights(folder / "run"))
    assert students[0] == students[1]


def test_the_hash_in_the_run_folder_is_that_of_the_features(done, monkeypatch):
    written = read(done.run, "results.json")["pretraining"]["features_sha256"]
    assert written == read(done.run / "checkpoints", "clusters.json")["features_sha256"]
    recipe = load_recipe(str(done.folder / "recipe.yaml"), ["pseudo_labels.clusters=2"])
    data = types.SimpleNamespace(train=None)
    run = types.SimpleNamespace(recipe=recipe, data=data, progress=Progress(quiet=True))
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    other = features.clone()
    other[3, 1] += 1e-6
    hashes = []
    for values in (features, features.clone(), other):
        monkeypatch.setattr(pseudo_labels, "_features", lambda *_, values=values: (values, None))
        _, facts = pseudo_labels._cluster(run, recipe.pseudo_labels, None)
        hashes.append(facts["features_sha256"])
    assert hashes[0] == hashes[1] == hashlib.sha256(features.numpy().tobytes()).hexdigest()
    assert hashes[2] != hashes[0]


@pytest.mark.exhaustive
def test_a_killed_run_continues_to_the_same_bits(done, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcompress.pipeline.with_clusters", interrupted)
        assert distill(tmp_path).exit_code != 0
    assert (tmp_path / "run" / "checkpoints" / "clusters.safetensors").exists()
    assert distill(tmp_path, "--resume").exit_code == 0
    assert weights(tmp_path / "run") == weights(done.run)


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.exhaustive
def test_random_weights_and_plain_training_on_the_clusters_are_other_students(done, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(done.folder / "cache"))
    options = ("--set", "pseudo_labels.student=random", "--method", "none")
    result = distill(tmp_path, *options)
    assert result.exit_code == 0, result.stderr
    same = (done.run / "checkpoints" / "clusters.safetensors").read_bytes()
    assert (tmp_path / "run" / "checkpoints" / "clusters.safetensors").read_bytes() == same
    assert weights(tmp_path / "run") != weights(done.run)


@pytest.mark.exhaustive
def test_features_that_are_not_whitened_give_other_clusters(done, tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(done.folder / "cache"))
    assert distill(tmp_path, "--set", "pseudo_labels.whiten=false").exit_code == 0
    found = safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / "clusters.safetensors")
    assert found.keys() == {"assigned", "centres"}
    assert found["centres"].shape == (6, 64)
    assert weights(tmp_path / "run") != weights(done.run)


def test_evaluate_and_export_know_that_the_outputs_are_clusters(done, tmp_path):
    recipe = str(done.folder / "recipe.yaml")
    for file in ("student.onnx", "student.safetensors"):
        result = CliRunner().invoke(main, ["evaluate", str(done.run / file), "--recipe", recipe, "--json"])
        assert result.exit_code == 0, result.stderr
        figure = read(done.run, "results.json")["student"]["cluster_accuracy"]
        assert json.loads(result.stdout)["cluster_accuracy"] == pytest.approx(figure)
    result = CliRunner().invoke(main, ["export", str(done.run), "--out", str(tmp_path / "again")])
    assert result.exit_code == 0, result.stderr
    assert weights(tmp_path / "again") == weights(done.run)
    assert read(tmp_path / "again", "config.json")["task"] == "clusters"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.labels=all", "data.labels: expected none, since pseudo_labels takes clusters for labels"),
        ("data.extra.root=x", "data.extra: cannot be used with pseudo_labels"),
        ("train.ship=ensemble", "train.ship: ensemble cannot be used with pseudo_labels"),
        ("export.exits=true", "export.exits: cannot be used with pseudo_labels"),
        ("method.name=kd", "teacher: required by the method 'kd'"),
        (
            "pseudo_labels.method.name=byot",
            "byot does not train a backbone without labels and teacher; choices:",
        ),
        ("pseudo_labels.method.name=simsam", "unknown method 'simsam'; did you mean 'simsiam'?"),
        ("pseudo_labels.method.wdith=9", "pseudo_labels.method.wdith: unknown key"),
        ("pseudo_labels.clusters=1", "pseudo_labels.clusters: expected at least 2, got 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(tmp_path, override, message):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(tmp_path / "recipe.yaml"), [override])
    assert message in str(error.value)


def test_a_method_without_labels_of_its_own_leaves_the_clusters_out():
    notices = []
    recipe = load_recipe("sssd", method="simsiam", notify=notices.append)
    assert recipe.pseudo_labels is None
    assert recipe.data.labels == "none"
    assert notices == ["method simsiam: the recipe's pseudo labels are left out, and the backbone ships"]


def test_clusters_of_ones_own_are_refused_beside_a_method_that_trains_a_backbone():
    with pytest.raises(RecipeError, match=r"method\.name: simsiam trains a backbone without labels"):
        load_recipe("sssd", ["pseudo_labels.clusters=4"], method="simsiam")


def test_another_networks_copies_learn_the_clusters_too():
    recipe = load_recipe("sssd", method="dml", notify=lambda _: None)
    assert recipe.pseudo_labels.method["name"] == "moco"
    assert len(recipe.peers) == 1


def test_other_labels_in_an_evaluation_leave_the_splits_as_they_were_trained_on():
    assert load_recipe_of_data("quickstart", ["data.labels=none"]).data.cut_by_class
    assert load_recipe_of_data("quickstart").data.cut_by_class
    assert not load_recipe_of_data("sssd", ["data.labels=300", "pseudo_labels=null"]).data.cut_by_class
    assert not load_recipe_of_data("sssd", ["pseudo_labels=null"]).data.cut_by_class
    assert load_recipe_of_data("sssd", ["data.cut=by_class"]).data.cut_by_class


def test_a_baseline_is_refused_with_what_to_do_instead(tmp_path):
    result = distill(tmp_path, "--baseline")
    assert result.exit_code == 2
    assert "run again with --method none" in result.stderr


def test_more_clusters_than_images_are_refused_before_any_training(tmp_path):
    result = distill(tmp_path, "--set", "pseudo_labels.clusters=5000")
    assert result.exit_code == 2
    assert "pseudo_labels.clusters: 5,000, and there are only 1,617 training images" in result.stderr
    assert not (tmp_path / "run").exists()


def test_clusters_are_scored_whatever_their_numbers():
    outputs = torch.eye(3)[torch.tensor([2, 2, 0, 0, 1, 1])]
    scorer = CLUSTERS.scorer(3)
    scorer.update(outputs, torch.tensor([5, 5, 7, 7, 9, 7]))
    result = scorer.result()
    assert result["cluster_accuracy"] == pytest.approx(5 / 6)
    assert result["purity"] == pytest.approx(5 / 6)
    assert result["n"] == 6
    assert CLUSTERS.score(outputs, torch.zeros(6, dtype=torch.int64)) == {}


def test_without_labels_nothing_is_claimed():
    scorer = CLUSTERS.scorer(3)
    scorer.update(torch.eye(3), torch.full((3,), -1))
    assert {scorer.result()[key] for key in ("cluster_accuracy", "nmi", "ari", "purity", "top1")} == {None}


def test_a_files_task_is_found_by_its_name():
    assert task_of(10, "clusters") is CLUSTERS
    assert [task_of(10).name, task_of(0).name] == ["classification", "embedding"]
