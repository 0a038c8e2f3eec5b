"""A recipe is checked as a whole, before anything else happens, and every problem of it comes at once."""

from __future__ import annotations

import pytest
import yaml

from kdcompress.errors import RecipeError, UserError
from kdcompress.listing import shipped_recipes
from kdcompress.recipe import load_recipe, model_problem, resolve_recipe
from kdcompress.strict_yaml import read_yaml

SMALL = """
data: {dataset: digits}
teacher: {model: cifar/wrn-16-2}
student: {model: cifar/resnet8}
method: {name: kd}
train: {epochs: 3}
optim: {lr: 1e-3}
"""


def written(tmp_path, text, name="mine.yaml"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def problems(name_or_file, *overrides, **options):
    with pytest.raises(RecipeError) as caught:
        load_recipe(name_or_file, overrides, **options)
    return caught.value.problems


def test_a_small_recipe_is_completed_with_defaults(tmp_path):
    recipe = load_recipe(written(tmp_path, SMALL))
    assert recipe.name == "mine"
    assert recipe.student.model == "cifar/resnet8"
    assert recipe.method["temperature"] > 0
    assert recipe.peers == []


def test_all_problems_come_at_once_with_path_and_close_name(tmp_path):
    text = """
    techer: {model: cifar/wrn-16-2}
    data: {dataset: digts, batch_size: lots, imagesize: 32}
    student: {model: cifar/resnet9}
    method: {name: kd, temprature: 3}
    train: {epochs: 0}
    optim: {lr: 0.1, schedule: cosinus}
    """
    file = written(tmp_path, text, "bad.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(caught.value).splitlines()[0] == f"{file}: 8 problems"
    assert set(caught.value.problems) == {
        "techer: unknown key; did you mean 'teacher'?",
        "data.dataset: unknown data set 'digts'; did you mean 'digits'?",
        "data.batch_size: expected int or 'auto', got 'lots'",
        "data.imagesize: unknown key; did you mean 'image_size'?",
        "student.model: unknown network 'resnet9' of family 'cifar'; did you mean 'resnet8'?",
        "method.temprature: unknown key; did you mean 'temperature'?",
        "train.epochs: expected at least 1 or 'auto', got 0",
        "optim.schedule: expected one of 'constant', 'cosine', 'multistep', 'one_cycle', got 'cosinus'",
    }


def test_what_the_method_needs_is_among_the_problems(tmp_path):
    text = SMALL.replace("teacher: {model: cifar/wrn-16-2}", "seeed: 1")
    assert set(problems(written(tmp_path, text))) == {
        "teacher: required by the method 'kd'",
        "seeed: unknown key; did you mean 'seed'?",
    }


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("lr=0.1", "lr: unknown key; did you mean 'teacher.lr' or 'optim.lr'?"),
        ("temperature=3", "temperature: unknown key; did you mean 'method.temperature'?"),
        ("train.batch_size=3", "train.batch_size: unknown key; did you mean 'data.batch_size'?"),
        ("optim.lr", "--set optim.lr: expected key.path=value"),
        ("=3", "--set =3: expected key.path=value"),
        ("optim..lr=3", "--set optim..lr=3: expected key.path=value"),
        ("optim.lr=", "optim.lr: expected float, got nothing"),
        ("optim.lr=0,1", "optim.lr: expected float, got '0,1'"),
        ("optim.lr=-1", "optim.lr: expected more than 0, got -1"),
        ("optim.lr=.inf", "optim.lr: expected a finite number, got inf"),
        ("method.kd_weight=.nan", "method.kd_weight: expected a finite number, got nan"),
        ("optim.lr.x=1", "--set optim.lr.x=1: 'optim.lr' holds a value, not a section"),
        ("optim.lr=[1", "--set optim.lr=[1: expected ',' or ']', but got '<stream end>'"),
        ("student=!!python/name:os.system ", "--set student=!!python/name:os.system : tags"),
        ("train.epochs=2.5", "train.epochs: expected int or 'auto', got 2.5"),
        ("train.epochs=010", "train.epochs: expected int or 'auto', got '010'"),
        ("train.epochs='3'", "train.epochs: expected int or 'auto', got '3'"),
        ("train.threads=100000", "train.threads: expected at most 1024, got 100000"),
        ("teacher.cache=foo", "teacher.cache: expected a section or one of 'off', 'auto', got 'foo'"),
        ("teacher.cache.views=0", "teacher.cache.views: expected at least 1 or 'auto', got 0"),
        ("teacher.cache={view: 3}", "teacher.cache.view: unknown key; did you mean 'views'?"),
        ("train.compile=1", "train.compile: expected true or false or 'auto', got 1"),
        ("train.ema=1", "train.ema: expected less than 1, got 1"),
        (
            "train.class_weights=even",
            "train.class_weights: expected one of 'auto', 'none', 'balanced' or a list",
        ),
        ("train.class_weights=[a]", "train.class_weights.0: expected float, got 'a'"),
        ("bench.threads=[some]", "bench.threads.0: expected int or 'all', got 'some'"),
        ("bench.threads=[0]", "bench.threads.0: expected at least 1 or 'all', got 0"),
        ("bench.batch=[0]", "bench.batch.0: expected at least 1, got 0"),
        ("export.formats=[onxx]", "export.formats.0: expected one of 'executorch', 'onnx', "),
        ("export.formats=[1]", "export.formats.0: expected text, got 1"),
        ("export.formats=[]", "export.formats: expected at least 1 entry, got []"),
        ("data.held_out=1.5", "data.held_out: expected a share below 1 or a whole number of images, got 1.5"),
        ("teacher.input.std=[0]", "teacher.input.std.0: expected more than 0, got 0"),
        ("optim.milestones=[-1]", "optim.milestones.0: expected at least 0, got -1"),
        ("name=../x", "name: expected letters, digits, '.', '_' and '-', with a letter or digit first"),
        ("name=1e3", "name: expected text, got 1000.0"),
        ("student=cifar/a", "student: expected a section, got 'cifar/a'; did you mean student.model?"),
        ("method=kd", "method: expected a section, got 'kd'; did you mean method.name?"),
        ("student=null", "student: expected a section, got nothing"),
        ("student.model=resnet18", "student.model: expected FAMILY/NAME, got 'resnet18'; families: cifar"),
        ("student.model=cifr/resnet8", "student.model: unknown family 'cifr'; did you mean 'cifar'?"),
        ("student.model=3", "student.model: expected text, got 3"),
        ("method.name=kdd", "method.name: unknown method 'kdd'; did you mean 'kd'?"),
        ("method.name=sssd", "method.name: unknown method 'sssd'; that is a recipe: --recipe sssd"),
        ("method.name=null", "method.name: required; choices: "),
        ("train.ship=a b", "train.ship: expected best, last, ensemble or the name of a candidate"),
        ("teacher=null", "teacher: required by the method 'kd'"),
        ("peers=[cifar/resnet8]", "peers: the method 'kd' has no use for them"),
        ("peers=cifar/resnet8", "peers: expected a list, got 'cifar/resnet8'"),
        ("student.model=python:os", "student.model: expected python:package.module:function, got 'pyth"),
        ("student.model=python:os:x", "student.model: 'python:os:x' runs code of yours; pass --allow-code"),
        ("student.sha256=ABC", "student.sha256: expected 64 hexadecimal digits in small letters, got 'ABC'"),
        ("teacher.weights=auto", "teacher.weights: expected random or weights by name, since auto is for"),
        ("seed=" + "9" * 200, "seed: expected less than 2147483648, got 999999"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_problem_that_says_what_to_change(override, problem):
    (found,) = problems("quickstart", override)
    assert found.startswith(problem)
    assert len(found) < 300


def test_a_model_problem_of_a_peer_says_which_peer():
    (found,) = problems("quickstart", "peers=[cifar/resnet8, cifar/resnet9]", method="dml")
    assert found.startswith("peers.1.model: unknown network 'resnet9'")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5e-2", 0.005),
        ("1.", 1.0),
        ("3", 3),
        ("0.25", 0.25),
        ("+1e+2", 100),
    ],
)
def test_set_reads_numbers_as_people_write_them(text, value):
    assert load_recipe("quickstart", [f"optim.lr={text}"]).optim.lr == value


def test_set_parses_lists_sections_booleans_and_nothing():
    recipe = load_recipe(
        "quickstart",
        [
            "optim.milestones=[0.5, 2]", "teacher.input={mean: [0.5], std: [0.2]}", "optim.nesterov=false",
            "data.root=null", "data.augment=none", "teacher.weights=a=b.pt",
        ],
    )  # fmt: skip
    assert recipe.optim.milestones == [0.5, 2]
    assert recipe.teacher.input.std == [0.2]
    assert recipe.optim.nesterov is False
    assert recipe.data.root is None
    assert recipe.data.augment == "none"
    assert recipe.teacher.weights == "a=b.pt"


def test_later_overrides_win():
    assert load_recipe("quickstart", ["seed=1", "seed=2"]).seed == 2


def test_set_reaches_into_a_list_by_number():
    assert (
        load_recipe("quickstart", ["peers.0.model=cifar/resnet14"], method="dml").peers[0].model
        == "cifar/resnet14"
    )
    assert load_recipe("quickstart", ["bench.batch=[1, 2]", "bench.batch.1=8"]).bench.batch == [1, 8]
    (found,) = problems("quickstart", "peers.1.model=cifar/resnet8", method="dml")
    assert found.endswith("'peers' is a list of 1, numbered from 0; it has no '1'")


@pytest.mark.parametrize("order", [1, -1])
def test_another_method_takes_its_own_keys_in_whatever_order_they_are_set(order):
    overrides = ["method.name=dml", "method.temperature=2", "teacher=null", "peers=[cifar/resnet8]"][::order]
    recipe = load_recipe("quickstart", overrides)
    assert (recipe.method["name"], recipe.method["temperature"]) == ("dml", 2)
    assert "kd_weight" not in recipe.method


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "line 2, column 8: aliases (*name) are not allowed"),
        ("name: !!python/object/apply:os.system [echo]", "line 1, column 7: tags (tag:yaml.org,2002:python/"),
        ("student: !mine {}", "line 1, column 10: tags (!mine) are not allowed"),
        ("seed: 1\nseed: 2", "line 2, column 1: the key 'seed' stands twice"),
        ("train: {epochs: 1, epochs: 2}", "line 1, column 20: the key 'epochs' stands twice"),
        ("1: a", "line 1, column 1: keys are text, not 1"),
        ("[1]: a", "line 1, column 1: keys are text, not [1]"),
        ("a: 1\n---\nb: 1", "line 2, column 1: a second document begins"),
        ("a: [1", "line 1, column 6: expected ',' or ']'"),
        ("a: \x01", "is not valid YAML"),
        ("[" * 20_000, "is nested too deeply"),
        ("a: " + "x" * (1 << 17), "larger than 128 KiB"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        ("- a\n- b", "a recipe is a mapping of sections"),
        ("", "a recipe is a mapping of sections"),
        ("hello", "a recipe is a mapping of sections"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_yaml_that_is_no_plain_mapping_is_refused(tmp_path, text, problem):
    (found,) = problems(written(tmp_path, text))
    assert found.startswith(problem)


def test_nothing_in_a_yaml_tag_is_run(tmp_path):
    marker = tmp_path / "marker"
    problems(written(tmp_path, f"name: !!python/object/apply:os.mkdir ['{marker}']"))
    problems("quickstart", f"name=!!python/object/apply:os.mkdir ['{marker}']")
    assert not marker.exists()


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot be read: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", "unknown recipe 'quickstrat'; did you mean 'quickstart'?"),
        ("quickstart.yaml", "no recipe file 'quickstart.yaml'; did you mean the shipped 'quickstart'?"),
        ("recipes/nope.yaml", "no recipe file 'recipes/nope.yaml'"),
        ("zzz", "unknown recipe 'zzz'; choices: cifar100-"),
        ("", "unknown recipe ''; choices: cifar100-"),
    ],
)
def test_an_unknown_recipe_is_named_with_what_may_have_been_meant(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    assert str(caught.value).startswith(message)


def test_a_folder_is_no_recipe_and_a_run_folder_points_to_its_own(tmp_path):
    with pytest.raises(UserError, match="is a folder, no recipe; expected"):
        load_recipe(str(tmp_path))
    written(tmp_path, SMALL, "recipe.yaml")
    with pytest.raises(UserError, match=r"did you mean '.*recipe\.yaml'"):
        load_recipe(str(tmp_path))


@pytest.mark.parametrize("name", shipped_recipes())
def test_what_to_yaml_writes_is_read_back_to_an_equal_recipe(tmp_path, name):
    recipe = load_recipe(name)
    text = recipe.to_yaml()
    assert yaml.safe_load(text)["name"] == name
    assert load_recipe(written(tmp_path, text, "back.yaml")) == recipe


@pytest.mark.parametrize("text", ["1e3", "010", "1_0", "1:30", "2020-01-01", "no", "null", ".5e1", "5."])
def test_text_that_looks_like_another_type_survives_the_round_trip(tmp_path, text):
    recipe = load_recipe("quickstart", [f"data.root='{text}'", f"student.weights='{text}'"])
    assert recipe.data.root == text
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe


def test_names_of_a_family_beyond_its_list_are_known_by_its_pattern():
    assert load_recipe("quickstart", ["student.model=cifar/wrn-22-3"]).student.model == "cifar/wrn-22-3"
    assert model_problem("cifar/wrn-22-3", False) is None
    assert model_problem("cifar/wrn-22-3x", False).startswith("unknown network 'wrn-22-3x'")
    assert model_problem("timm/whatever", False) is None  # its package is asked when it is built
    assert model_problem("python:a.b:c", True) is None


def test_a_recipe_cannot_be_changed_after_it_was_checked():
    recipe = load_recipe("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_auto_is_the_students_default_and_show_says_so():
    assert resolve_recipe("quickstart").sources["student.weights"] == "command default"
    assert load_recipe("quickstart").student.weights == "auto"


@pytest.mark.parametrize("weights", ["auto", "random", "null"])
def test_a_hash_needs_weights_by_name(weights):
    (problem,) = problems("quickstart", f"student.weights={weights}", f"student.sha256={'a' * 64}")
    assert problem.startswith("student.sha256: expected nothing, since weights names no file, got 'aaa")


def test_random_is_a_word_for_no_weights():
    teacher = load_recipe("quickstart", ["teacher.weights=random"]).teacher
    assert teacher.initial_weights is None
