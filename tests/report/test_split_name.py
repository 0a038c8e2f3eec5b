"""Texts name the test split as its folder is named, and leave the user's own words as they are."""

from __future__ import annotations

import json

import pytest
from run_folders import write_run

from kdcompress.data.split_name import keep_words, name_split
from kdcompress.report.card import write_card
from kdcompress.report.page import write_report

OWN = "test images"
"""Name of a class, and of a folder."""


@pytest.mark.parametrize(
    "own", ["test image", "images in test/a", "my test split", "a test", "latest", "test"]
)
@pytest.mark.parametrize("name", ["val", "test"])
def test_the_users_words_stay(own, name):
    sentence = f"The class {keep_words(own)!r} of {keep_words(own)} images: 3 of 9 test images."
    assert name_split(sentence, name) == f"The class {own!r} of {own} images: 3 of 9 {name} images."


def test_words_of_a_tree_are_marked_and_nothing_else_of_it():
    tree = {"a": ["test images", 3, None, {"b": "the test split"}]}
    assert name_split(json.dumps(keep_words(tree), ensure_ascii=False), "val") == json.dumps(tree)


@pytest.mark.parametrize("write", [write_report, write_card])
def test_a_class_that_is_named_like_the_split_keeps_its_name_in_the_pages(tmp_path, write):
    run = write_run(tmp_path / "run")
    for file in ("config.json", "manifest.json"):
        document = json.loads((run / file).read_text())
        if "label_names" in document:
            document["label_names"][0] = OWN
        if "data" in document:
            document["data"]["test_split"] = "val"
        (run / file).write_text(json.dumps(document))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("name: ", f"name: {OWN} of ", 1))
    text = write(run).read_text()
    assert f"{OWN} of" in text
    assert "val images" in text or "val split" in text
    assert f"{OWN}," in text or f">{OWN}<" in text
    assert "\u034f" not in text
