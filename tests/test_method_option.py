"""`--method`, `--preset` and `--set` change a recipe in this order, and each value names its source."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from kdcompress import discovery
from kdcompress.cli import main
from kdcompress.errors import RecipeError
from kdcompress.listing import shipped_recipes
from kdcompress.methods.base import find_method
from kdcompress.methods.presets import Preset
from kdcompress.networks import from_recipe
from kdcompress.recipe import load_recipe, resolve_recipe
from kdcompress.recipe.schema import OptimSection
from kdcompress.strict_yaml import read_yaml, to_commented_yaml

PAIR = "resnet34-to-resnet18"
TINY = Preset({"temperature": 2.0, "alpha": 0.5}, {"epochs": 7}, {"lr": 0.3}, "a test's")


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def problems(*arguments, **options):
    with pytest.raises(RecipeError) as caught:
        resolve_recipe(*arguments, **options)
    return list(caught.value.problems)


@pytest.fixture
def dkd_preset(monkeypatch):
    monkeypatch.setattr(find_method("dkd"), "PRESETS", {"tiny": TINY})


def test_a_method_replaces_the_recipes_method_with_all_of_its_keys():
    recipe = load_recipe(PAIR, method="kd")
    assert load_recipe(PAIR).method["temperature"] == 1
    assert recipe.method == {"name": "kd", **find_method("kd").Config().model_dump()}
    assert recipe.train == load_recipe(PAIR).train
    assert recipe.name == PAIR


@pytest.mark.parametrize("recipe", shipped_recipes())
@pytest.mark.parametrize("method", discovery.names("method"))
def test_every_method_goes_with_every_recipe_that_has_its_teacher(recipe, method):
    needs = find_method(method).needs(find_method(method).Config())
    if needs.teacher and load_recipe(recipe).teacher is None:
        assert problems(recipe, method=method) == [f"teacher: required by the method {method!r}"]
        return
    resolved = load_recipe(recipe, method=method, notify=lambda notice: None)
    assert (resolved.teacher is not None) is needs.teacher
    assert len(resolved.peers) == (needs.peers or 0)


def test_recipe_then_method_then_preset_then_set(dkd_preset):
    resolved = resolve_recipe(PAIR, ["method.alpha=9", "optim.momentum=0.5"], method="dkd", preset="tiny")
    recipe, sources = resolved.recipe, resolved.sources
    expected = {
        "method.name": ("dkd", "--method"),
        "method.temperature": (2, "preset tiny"),
        "method.alpha": (9, "--set"),
        "method.beta": (8, "method default"),
        "train.epochs": (7, "preset tiny"),
        "optim.lr": (0.3, "preset tiny"),
        "optim.momentum": (0.5, "--set"),
        "optim.weight_decay": (1e-4, "recipe"),
        "train.ship": ("best", "command default"),
    }
    for path, (value, source) in expected.items():
        section, key = path.split(".")
        here = recipe.method if section == "method" else getattr(recipe, section).model_dump()
        assert (here[key], sources[path]) == (value, source), path


def test_a_preset_without_a_method_is_of_the_recipes_method_or_of_the_one_that_is_set(dkd_preset):
    assert load_recipe(PAIR, ["method.name=dkd"], preset="tiny").method["alpha"] == 0.5
    (problem,) = problems(PAIR, preset="tiny")
    assert problem.startswith("--preset tiny: the method 'kd' has no such preset; ")


def test_an_unknown_preset_lists_the_presets_of_the_method(dkd_preset):
    assert problems(PAIR, method="dkd", preset="cifar10") == [
        "--preset cifar10: the method 'dkd' has no such preset; choices: tiny"
    ]
    done = kdcompress("distill", "--recipe", PAIR, "--method", "dkd", "--preset", "cifar10")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 2


def test_a_preset_of_a_method_without_presets_is_refused(monkeypatch):
    monkeypatch.setattr(find_method("none"), "PRESETS", {})
    (problem,) = problems("quickstart", method="none", preset="cifar100")
    assert problem.endswith("has no such preset; it has none; leave --preset out")


def test_unknown_names_come_with_all_other_problems():
    assert problems("quickstart", ["optim.lr=0", "lr=1"], method="crdd", preset="cifar100") == [
        "method.name: unknown method 'crdd'; did you mean 'crd'?",
        "optim.lr: expected more than 0, got 0",
        "lr: unknown key; did you mean 'teacher.lr' or 'optim.lr'?",
    ]


def test_two_names_of_a_method_are_refused():
    assert problems("quickstart", ["method.name=kd"], method="dkd") == [
        "--set method.name=kd: --method names dkd already; leave one of the two out"
    ]
    assert load_recipe("quickstart", ["method.name=dkd"], method="dkd").method["name"] == "dkd"


@pytest.mark.parametrize("method", discovery.names("method"))
def test_presets_set_valid_values_of_method_epochs_and_optimiser_alone(method):
    cls = find_method(method)
    for name, preset in cls.PRESETS.items():
        cls.Config.model_validate(preset.method)
        assert set(preset.train) <= {"epochs"}
        assert set(preset.optim) <= set(OptimSection.model_fields)
        recipe = load_recipe("quickstart", method=method, preset=name, notify=lambda notice: None)
        assert preset.method.items() <= recipe.method.items()
        assert preset.optim.items() <= recipe.optim.model_dump().items()


# ---- methods without a teacher, methods with peers


@pytest.mark.parametrize("method", ["byot", "dml", "none"])
def test_a_method_without_a_teacher_leaves_the_recipes_out_and_says_so_in_one_line(method):
    resolved = resolve_recipe(PAIR, method=method)
    assert resolved.recipe.teacher is None
    assert resolved.sources["teacher"] == f"left out: {method} has no teacher"
    (notice,) = resolved.notices
    assert notice.startswith(f"method {method}: the recipe's teacher is left out")
    done = kdcompress("show", PAIR, "--method", method)
    assert (done.exit_code, done.stderr) == (0, f"Note: {notice}\n")
    assert load_recipe(PAIR, [f"method.name={method}"], notify=lambda notice: None) == resolved.recipe


def test_a_teacher_that_is_set_for_a_method_without_one_is_one_problem():
    settings = ["teacher.weights=null", "teacher.epochs=1"]
    assert problems(PAIR, settings, method="byot") == [
        "teacher: the method 'byot' has no use for one; leave out --set teacher.weights=null --set "
        "teacher.epochs=1"
    ]
    done = kdcompress("distill", "--recipe", PAIR, "--method", "byot", "--set", "teacher.epochs=1")
    assert done.exit_code == 2
    assert resolve_recipe(PAIR, ["teacher=null"], method="byot").notices == ()


def test_a_recipe_with_a_teacher_that_its_own_method_cannot_use_is_still_wrong(tmp_path):
    text = (
        shipped_recipes()["quickstart"].read_text().replace("method: {name: kd", "method: {name: byot}\n# ")
    )
    (tmp_path / "mine.yaml").write_text(text)
    assert problems(str(tmp_path / "mine.yaml")) == [
        "teacher: the method 'byot' has no use for one; take it out (--set teacher=null)"
    ]


def test_an_online_method_adds_copies_of_the_student_as_it_is_set():
    resolved = resolve_recipe(
        PAIR, ["peers.0.weights=IMAGENET1K_V1", "student.model=cifar/resnet8"], method="dml"
    )
    (peer,) = resolved.recipe.peers
    assert (peer.model, peer.weights) == ("cifar/resnet8", "IMAGENET1K_V1")
    assert resolved.recipe.student.weights == "auto"
    assert resolved.sources["peers.0.model"] == "copy of the student, for dml"
    assert resolved.sources["peers.0.weights"] == "--set"
    (notice,) = resolved.notices
    assert "1 peer(s) added: cifar/resnet8 like the student" in notice


def test_peers_that_are_listed_are_not_completed():
    resolved = resolve_recipe("quickstart", ["peers=[cifar/resnet14, cifar/resnet20]"], method="dml")
    assert [peer.model for peer in resolved.recipe.peers] == ["cifar/resnet14", "cifar/resnet20"]
    assert "added" not in resolved.notices[0]
    assert problems("quickstart", ["peers=[]"], method="dml") == [
        "peers: the method 'dml' needs at least 1, got 0"
    ]


def test_a_method_without_peers_leaves_the_recipes_out(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(load_recipe("quickstart", method="dml", notify=lambda notice: None).to_yaml())
    resolved = resolve_recipe(str(file), method="byot")
    assert resolved.recipe.peers == []
    assert resolved.sources["peers"] == "left out: byot has no peers"


def test_student_and_added_peers_start_from_different_weights():
    recipe = load_recipe("quickstart", ["student.weights=random"], method="dml", notify=lambda notice: None)
    networks = [
        from_recipe.load_network(
            section, num_classes=10, channels=1, image_size=(8, 8), seed=recipe.seed, purpose=purpose,
            allow_code=False,
        ).network
        for section, purpose in ((recipe.student, "student"), (recipe.peers[0], "peer1"))
    ]  # fmt: skip
    first, second = (next(network.parameters()) for network in networks)
    assert first.shape == second.shape
    assert not first.equal(second)


@pytest.mark.parametrize(
    "method", ["dml", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("byot", "none"))]
)
def test_distill_runs_a_method_without_a_teacher_on_a_pair_recipe(tmp_path, method):
    done = kdcompress(
        "distill", "--recipe", "quickstart", "--method", method, "--set", "train.max_steps=2",
        "--set", "bench.rounds=1", "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["teacher"] is None
    assert done.stderr.startswith(f"Note: method {method}: the recipe's teacher is left out")
    recorded = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (recorded.method["name"], len(recorded.peers)) == (method, 1 if method == "dml" else 0)


# ---- show


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("method", [None, "crd", "dml"])
def test_show_prints_yaml_with_sources_that_repeats_the_recipe(tmp_path, name, method):
    if method == "crd" and load_recipe(name).teacher is None:
        pytest.skip("the recipe has no teacher")
    options = ["--method", method, "--set", "data.root='a # b'"] if method else []
    done = kdcompress("show", name, *options)
    assert done.exit_code == 0, done.stderr
    (tmp_path / "shown.yaml").write_text(done.stdout)
    resolved = resolve_recipe(name, options[3:], method=method)
    assert load_recipe(str(tmp_path / "shown.yaml")) == resolved.recipe
    assert all("#" in line or line.endswith(":") for line in done.stdout.splitlines())
    assert max(map(len, done.stdout.splitlines())) <= 80
    document = json.loads(kdcompress("show", name, *options, "--json").stdout)
    assert document["sources"] == resolved.sources


def test_every_value_has_exactly_one_source():
    resolved = resolve_recipe(
        "quickstart", ["export.int8=true", "data.extra=a.npz", "bench.batch=[1]", "bench.batch.0=4"]
    )
    text = to_commented_yaml(resolved.recipe.model_dump(mode="json"), resolved.sources)
    assert text.count("#") == len(resolved.sources)
    assert resolved.sources["data.extra.root"] == "--set"
    assert resolved.sources["data.extra.share"] == "command default"
    assert resolved.sources["export.int8.images"] == "command default"
    assert resolved.sources["bench.batch"] == "--set"


@pytest.mark.parametrize(
    "value", ["a\nb", "x y " * 60, "a: b # c", " lead", "1e3", "#", "no", "ü", '"', [], {}, None]
)
def test_a_comment_never_changes_the_value_before_it(tmp_path, value):
    document = {"a": {"b": value, "c": [{"d": value, "e": [1, "two"]}, {"d": 1}]}}
    comments = {"a.b": "one", "a.c.0.d": "two", "a.c.0.e": "three", "a.c.1.d": "four"}
    (tmp_path / "x.yaml").write_text(to_commented_yaml(document, comments), encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == document


# ---- a teacher of the user's own in place of the recipe's


OWN = "teacher.model=python:mine:build"


def test_the_weights_of_the_recipes_teacher_are_left_out_for_a_network_of_the_users():
    resolved = resolve_recipe("resnet50-to-mobilenet-v3-small", [OWN], allow_code=True)
    assert resolved.recipe.teacher.weights is None
    assert resolved.sources["teacher.weights"] == "left out: they are of the recipe's own teacher"
    (notice,) = resolved.notices
    assert "the recipe's IMAGENET1K_V2 is left out" in notice
    assert "--set teacher.weights=FILE" in notice


@pytest.mark.parametrize("weights", ["mine.pth", "IMAGENET1K_V2"])
def test_weights_that_the_user_names_for_their_own_network_stay(weights):
    overrides = [OWN, f"teacher.weights={weights}"]
    resolved = resolve_recipe("resnet50-to-mobilenet-v3-small", overrides, allow_code=True)
    assert resolved.recipe.teacher.weights == weights
    assert resolved.notices == ()


@pytest.mark.parametrize("weights", ["null", "random", "mine.pth"])
def test_a_recipe_without_published_weights_keeps_what_it_has(tmp_path, weights):
    text = shipped_recipes()["resnet50-to-mobilenet-v3-small"].read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("weights: IMAGENET1K_V2", f"weights: {weights}"))
    resolved = resolve_recipe(str(tmp_path / "mine.yaml"), [OWN], allow_code=True)
    assert resolved.recipe.teacher.weights == (None if weights == "null" else weights)
    assert resolved.notices == ()


def test_a_recipe_file_that_names_the_users_network_keeps_its_weights(tmp_path):
    text = shipped_recipes()["resnet50-to-mobilenet-v3-small"].read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("torchvision/resnet50", "python:mine:build"))
    resolved = resolve_recipe(str(tmp_path / "mine.yaml"), allow_code=True)
    assert resolved.recipe.teacher.weights == "IMAGENET1K_V2"
