"""Every recipe name of commit e33f4e2 still works and gives the values of its former file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.errors import RecipeError
from kdcompress.listing import shipped_recipes
from kdcompress.recipe import load_recipe, resolve_recipe
from kdcompress.recipe.old_names import OLD_NAMES
from kdcompress.strict_yaml import read_yaml

FORMER = read_yaml(Path(__file__).parent / "old_recipes.yaml")
# Former files relied on defaults that were the published values; now the presets say them.
NO_SOFT_LABELS = {
    f"{pair}-{method}": {"method.kd_weight": 0.0}
    for pair in ("cifar100-resnet32x4-to-resnet8x4", "resnet34-to-resnet18")
    for method in ("ab", "at", "crd", "fitnet", "mlkd", "reviewkd", "rkd", "sp", "srrl")
}
DIFFERENCES = {
    **NO_SOFT_LABELS,
    # The former file had 0.1111; both are 30 of the 270 epochs.
    "cifar100-resnet32x4-to-resnet8x4-ab": {"method.initial_share": 30 / 270, "method.kd_weight": 0.0},
    "resnet34-to-resnet18-ab": {"method.weight": 0.003, "method.kd_weight": 0.0},
    "resnet34-to-resnet18-sp": {"method.weight": 3000.0, "method.kd_weight": 0.0},
    "resnet34-to-resnet18-reviewkd": {"method.warmup_epochs": 20, "method.kd_weight": 0.0},
    # Changed since, so that the student passes 97 % on processors without bf16 as well.
    "quickstart": {"teacher.epochs": 30, "optim.weight_decay": 0.001},
    "quickstart-byot": {"optim.weight_decay": 0.001},
    "quickstart-dml": {"optim.weight_decay": 0.001},
}
# The recipes for image folders follow the number of images since; on ImageNet that gives the former values.
EPOCHS = {"train.epochs": "auto"}
FOLDERS = {
    "resnet101-to-resnet18": EPOCHS,
    "resnet50-to-mobilenet-v3-small": {**EPOCHS, "optim.warmup": 0.05},
    "resnet50-to-shufflenet-v2": {**EPOCHS, "optim.warmup": 0.05},
    **{
        name: {}
        for name in FORMER
        if name.startswith("resnet34-to-resnet18-") and FORMER[name]["data"]["batch_size"] == 256
    },
}
for _name, _changes in FOLDERS.items():
    DIFFERENCES[_name] = {"data.batch_size": "auto", **_changes, **DIFFERENCES.get(_name, {})}


def flat(recipe):
    def walk(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else key)
        else:
            yield path, value

    return dict(walk(recipe.model_dump(mode="json"), ""))


def test_the_table_holds_exactly_the_names_without_a_file():
    assert len(FORMER) == 45
    assert set(FORMER) == (set(FORMER) & set(shipped_recipes())) | set(OLD_NAMES)
    assert not set(OLD_NAMES) & set(shipped_recipes())


@pytest.mark.parametrize("name", FORMER)
def test_a_former_name_gives_the_values_of_its_former_file(tmp_path, name):
    (tmp_path / "former.yaml").write_text(yaml.safe_dump(FORMER[name]))
    former, present = load_recipe(str(tmp_path / "former.yaml")), resolve_recipe(name).recipe
    before, now = flat(former), flat(present)
    changed = {key: now.get(key) for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    assert changed == DIFFERENCES.get(name, {})


@pytest.mark.parametrize(("name", "old"), OLD_NAMES.items())
def test_a_former_name_means_its_options_and_says_so_in_one_line(name, old):
    resolved = resolve_recipe(name)
    same = resolve_recipe(old.recipe, old.overrides, method=old.method, preset=old.preset)
    assert resolved.recipe.replace(name=old.recipe) == same.recipe
    assert resolved.recipe.name == name  # the run folder keeps its name
    assert resolved.notices[0] == f"the recipe {name!r} is now: {old.options()}"
    assert resolved.notices[1:] == same.notices


def test_the_options_of_a_former_name_are_accepted_by_the_command():
    old = OLD_NAMES["resnet34-to-resnet18-dkd"]
    assert old.options() == (
        "--recipe resnet34-to-resnet18 --method dkd --preset imagenet --set data.batch_size=512 "
        "--set optim.lr=0.2"
    )
    main.commands["distill"].make_context("distill", old.options().split())
    done = CliRunner().invoke(main, ["show", "quickstart-dml"])
    assert done.exit_code == 0
    assert "Note: the recipe 'quickstart-dml' is now: --recipe quickstart --method dml\n" in done.stderr


def test_options_go_before_those_of_a_former_name():
    assert load_recipe("quickstart-dml", ["optim.lr=0.5"], notify=print).optim.lr == 0.5
    other = load_recipe("resnet34-to-resnet18-dkd", method="kd", notify=lambda notice: None)
    assert (other.method["name"], other.data.batch_size) == ("kd", "auto")
    with pytest.raises(RecipeError, match="--preset tiny: the method 'dml' has no such preset"):
        resolve_recipe("quickstart-dml", preset="tiny")
