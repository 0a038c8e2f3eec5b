from __future__ import annotations

import pytest

from kdcompress import discovery
from kdcompress.methods.base import find_method
from kdcompress.methods.presets import CRD_PAIRS, crd_table
from kdcompress.networks.build import build
from kdcompress.recipe import OptimSection, TrainSection

NAMES = discovery.names("method")


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_valid_sections_of_a_recipe_and_set_nothing_else(name):
    cls = find_method(name)
    assert set(cls.PRESETS) <= {"cifar100", "imagenet"}
    for preset in cls.PRESETS.values():
        config = cls.Config.model_validate(preset.method)
        assert preset.method.keys() <= config.model_dump().keys()
        assert set(preset.train) == {"epochs"}
        TrainSection(**preset.train)
        optim = OptimSection(**{"lr": 0.1, **preset.optim})
        assert preset.optim.keys() <= optim.model_dump().keys()
        if optim.schedule == "multistep":
            assert max(optim.milestones) <= preset.train["epochs"]


PUBLISHED = {
    # What the presets must say themselves, since the method's defaults are others.
    "fitnet": {"weight": 100.0, "ce_weight": 1.0, "kd_weight": 0.0},
    "at": {"weight": 1000.0, "power": 2.0, "ce_weight": 1.0, "kd_weight": 0.0},
    "ab": {"weight": 0.003, "margin": 1.0, "initial_share": 30 / 270, "ce_weight": 1.0, "kd_weight": 0.0},
    "sp": {"weight": 3000.0, "ce_weight": 1.0, "kd_weight": 0.0},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0, "ce_weight": 1.0, "kd_weight": 0.0},
    "crd": {"weight": 0.8, "negatives": 16384, "ce_weight": 1.0, "kd_weight": 0.0},
    "srrl": {"feature_weight": 1.0, "classifier_weight": 1.0, "ce_weight": 1.0, "kd_weight": 0.0},
    "reviewkd": {"warmup_epochs": 20, "ce_weight": 1.0, "kd_weight": 0.0},
    "mlkd": {"ce_weight": 1.0, "kd_weight": 0.0},
    "dkd": {"ce_weight": 1.0, "alpha": 1.0},
    "ctkd": {"curriculum": "cosine"},
}
BY_SETTING = {
    "dkd": {"cifar100": {"warmup_epochs": 20}, "imagenet": {"warmup_epochs": 1}},
    "ctkd": {"cifar100": {"ramp_epochs": 10}, "imagenet": {"ramp_epochs": 5}},
    "reviewkd": {"cifar100": {"weight": 5.0}, "imagenet": {"weight": 1.0}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_names_every_published_value_that_a_default_may_change(name):
    for setting, preset in find_method(name).PRESETS.items():
        expected = PUBLISHED[name] | BY_SETTING.get(name, {}).get(setting, {})
        assert expected.items() <= preset.method.items()


@pytest.mark.parametrize("name", [*PUBLISHED, "sskd", "hsakd"])
def test_a_method_that_compares_features_also_has_soft_labels_by_default(name):
    config = find_method(name).Config()
    assert getattr(config, "kd_weight", 1.0) > 0


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_percentages_with_a_source_and_name_a_preset_that_exists(name):
    cls = find_method(name)
    needs_teacher = cls.needs(cls.Config()).teacher
    keys = [(f.setting, f.teacher, f.student, f.source) for f in cls.FIGURES]
    assert len(keys) == len(set(keys))
    for figure in cls.FIGURES:
        assert figure.setting in ("cifar100", "imagenet")
        assert 50 < figure.top1 < 90
        assert figure.source
        assert bool(figure.teacher) == needs_teacher
        assert figure.preset in (None, figure.setting)
        assert figure.preset is None or figure.preset in cls.PRESETS


@pytest.mark.parametrize("model", sorted({model for pair in CRD_PAIRS for model in pair}))
def test_the_pairs_of_the_crd_tables_are_networks_of_this_project(model):
    build(model, num_classes=100, channels=3, image_size=(32, 32))


def test_a_table_leaves_out_the_pairs_without_a_figure():
    values = [None] * (len(CRD_PAIRS) - 1)
    (figure,) = crd_table("somewhere", 75.0, *values, preset=None)
    assert (figure.teacher, figure.student, figure.top1) == ("cifar/wrn-40-2", "cifar/wrn-16-2", 75.0)
    with pytest.raises(ValueError, match="argument"):
        crd_table("somewhere", 75.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_method_is_its_published_name_with_its_source(name):
    summary = discovery.header("method", name).summary
    if name == "none":
        assert summary.startswith("Plain training")
    else:
        published, _, explanation = summary.partition("): ")
        assert explanation
        assert published[-4:].isdigit()
        assert " (" in published
