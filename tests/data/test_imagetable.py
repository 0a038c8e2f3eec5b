from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from kdcompress.data import table_records
from kdcompress.data.dataset import open_data
from kdcompress.data.table_records import LABELS, PATHS, SPLITS
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

COUNT = 24


def names(split=""):
    return [f"{split}{number}.png" for number in range(COUNT)]


@pytest.fixture
def folder(tmp_path):
    """A folder of images and, in each test, of a table; nothing in it has a class folder."""
    (tmp_path / "set").mkdir()
    for shift, split in enumerate(("", "val", "test")):
        for number, name in enumerate(names(split)):
            colour = (10 * number, 100, 50 * shift)
            Image.new("RGB", (20, 24), colour).save(tmp_path / "set" / name)
    return tmp_path / "set"


def rows(split=""):
    return [(name, "cat" if number % 3 else "dog") for number, name in enumerate(names(split))]


def table(folder, lines, name="labels.csv", *, encoding="utf-8", end="\n"):
    path = folder / name
    path.write_bytes(end.join(lines).encode(encoding))
    return path


def comma_table(folder, header="path,label", **more):
    return table(folder, [header, *(f"{file},{label}" for file, label in rows())], **more)


def opened(root, **more):
    return open_data(DataSection(dataset="imagefolder", root=str(root), image_size=16, **more))


def refused(root, **more):
    with pytest.raises(DataError) as raised:
        opened(root, **more)
    return str(raised.value)


def test_a_table_gives_what_the_same_images_in_class_folders_give(folder, tmp_path):
    data = opened(comma_table(folder))
    assert data.name == "imagetable"
    assert data.class_names == ("cat", "dog")
    for name, label in rows():
        (tmp_path / "sorted" / label).mkdir(parents=True, exist_ok=True)
        os.link(folder / name, tmp_path / "sorted" / label / name)
    sorted_data = opened(tmp_path / "sorted")
    assert data.counts == sorted_data.counts
    for split in ("train", "held_out", "test"):
        ours, theirs = getattr(data, split), getattr(sorted_data, split)
        assert [f"{data.class_names[k]}/{f}" for k, f in zip(ours.labels, ours.files, strict=True)] == [
            *theirs.files
        ]
    assert data.input_spec() == sorted_data.input_spec()


@pytest.mark.parametrize("name", PATHS)
def test_the_column_of_files_has_several_names(folder, name):
    assert opened(comma_table(folder, f"{name.upper()},label")).class_names == ("cat", "dog")


@pytest.mark.parametrize("name", LABELS)
def test_the_column_of_labels_has_several_names(folder, name):
    assert opened(comma_table(folder, f"path,{name.replace('_', ' ')}")).class_names == ("cat", "dog")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_marks_and_line_ends_make_no_difference(folder, delimiter, encoding, end):
    lines = ["weight,path,label".replace(",", delimiter)]
    lines += [delimiter.join(("0.5", f'"{file}"', f" {label} ")) for file, label in rows()]
    data = opened(table(folder, [*lines, "", ""], encoding=encoding, end=end))
    assert data.class_names == ("cat", "dog")
    assert sum(data.counts.values()) == COUNT


def test_json_lines_are_read_like_a_table(folder):
    lines = [json.dumps({"file_name": file, "label": label, "more": [1]}) for file, label in rows()]
    data = opened(table(folder, lines, "labels.jsonl"))
    assert data.class_names == ("cat", "dog")
    assert data.listing_sha256 == opened(comma_table(folder)).listing_sha256


def test_a_class_named_by_a_number_stays_a_name(folder):
    lines = [json.dumps({"path": file, "label": 7 if label == "cat" else 10}) for file, label in rows()]
    assert opened(table(folder, lines, "labels.jsonl")).class_names == ("10", "7")
    numbered = ["path,label", *(f"{file},{'007' if label == 'cat' else 10}" for file, label in rows())]
    assert opened(table(folder, numbered)).class_names == ("007", "10")


@pytest.mark.parametrize("column", SPLITS)
@pytest.mark.parametrize(("val", "called"), [("val", "val"), ("Validation", "validation"), ("dev", "val")])
def test_a_column_of_splits_is_taken_as_named(folder, column, val, called):
    lines = [f"path,label,{column}"]
    lines += [f"{file},{label},Train" for file, label in rows()]
    lines += [f"{file},{label},{val}" for file, label in rows("val")]
    data = opened(table(folder, lines))
    assert data.counts == {"train": COUNT - 2, "held_out": 2, "test": COUNT, "broken": 0}
    assert all(name.startswith("val") for name in data.test.files)
    assert data.test_name == called
    lines += [f"{file},{label},test" for file, label in rows("test")]
    data = opened(table(folder, lines))
    assert data.counts == {"train": COUNT, "held_out": COUNT, "test": COUNT, "broken": 0}
    assert all(name.startswith("val") for name in data.held_out.files)
    assert data.test_name == "test"


def test_a_folder_of_images_with_a_table_beside_it_is_a_table(folder, tmp_path):
    (tmp_path / "whole").mkdir()
    folder.rename(tmp_path / "whole" / "images")
    comma_table(tmp_path / "whole")
    assert opened(tmp_path / "whole").class_names == ("cat", "dog")
    table(tmp_path / "whole", ["path,label", *(f"images/{file},{label}" for file, label in rows())])
    assert opened(tmp_path / "whole").class_names == ("cat", "dog")
    comma_table(tmp_path / "whole", name="labels.tsv")
    assert "'labels.csv', 'labels.tsv' are both tables of labels" in refused(tmp_path / "whole")


def test_other_labels_are_other_data(folder):
    before = opened(comma_table(folder)).listing_sha256
    other = ["path,label", *(f"{file},{'dog' if label == 'cat' else 'cat'}" for file, label in rows())]
    assert opened(table(folder, other)).listing_sha256 != before


def test_labels_are_not_needed_where_they_are_not_read(folder):
    lines = ["path,note", *(f"{file},x" for file, _ in rows())]
    data = opened(table(folder, lines), labels="none")
    assert data.class_names == ()
    assert sum(data.counts.values()) == COUNT


def test_missing_files_are_named_with_their_lines_and_count_as_broken(folder):
    path = comma_table(folder)
    (folder / "3.png").unlink()
    data = opened(path)
    assert data.counts["broken"] == 1
    assert "1 of 24 image files cannot be read: 3.png (line 5: no such file); left out" in data.warnings[0]
    (folder / "4.png").unlink()
    message = refused(path)
    assert "2 of 24 image files cannot be read: 3.png (line 5: no such file); 4.png (line 6" in message
    assert "data.max_broken allows 1" in message


def test_a_repeated_row_counts_once_and_is_named(folder):
    lines = ["path,label", *(f"{file},{label}" for file, label in rows()), "./2.png,cat"]
    data = opened(table(folder, lines))
    assert sum(data.counts.values()) == COUNT
    assert "1 row repeats a file, counted once: 2.png (lines 4 and 26)" in data.warnings[0]


def test_two_labels_of_a_file_are_an_error(folder):
    lines = ["path,label", *(f"{file},{label}" for file, label in rows()), "2.png,dog"]
    assert "line 26: '2.png' is 'dog', and 'cat' in line 4" in refused(table(folder, lines))


def test_two_splits_of_a_file_are_an_error(folder):
    lines = ["path,label,split", *(f"{file},{label},train" for file, label in rows()), "2.png,cat,test"]
    assert "line 26: '2.png' is split 'test', and split 'train' in line 4" in refused(table(folder, lines))


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "..\\out.png", "/etc/out.png"])
def test_a_row_that_points_out_of_the_folder_is_refused(folder, tmp_path, name):
    Image.new("RGB", (20, 24)).save(tmp_path / "out.png")
    lines = ["path,label", *(f"{file},{label}" for file, label in rows()), f"{name},dog"]
    assert f"line 26: {name!r} lies outside of the table's folder" in refused(table(folder, lines))


def test_a_row_may_name_a_file_of_the_folder_in_full(folder):
    lines = ["path,label", *(f"{folder / file},{label}" for file, label in rows())]
    data = opened(table(folder, lines))
    assert set(data.train.files) <= set(names())


def test_links_are_followed_within_the_folder_and_other_things_are_not_read(folder, tmp_path):
    (folder / "1.png").rename(folder / "elsewhere.png")
    (folder / "1.png").symlink_to("elsewhere.png")
    assert opened(comma_table(folder)).counts["broken"] == 0
    (folder / "elsewhere.png").rename(tmp_path / "elsewhere.png")
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(tmp_path / "elsewhere.png")
    assert "1.png (line 3: a link leads out of the table's folder" in opened(comma_table(folder)).warnings[0]
    (folder / "1.png").unlink()
    os.mkfifo(folder / "1.png")
    assert "1.png (line 3: is no regular file)" in opened(comma_table(folder)).warnings[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no column of image files; columns found: none"),
        (["path,label"], "the table has no rows"),
        (["a,b", "0.png,cat"], "no column of image files; columns found: 'a', 'b'. Name it 'path'"),
        (["0.png,cat", "1.png,dog"], "columns found: '0.png', 'cat'"),
        (["path,colour", "0.png,red"], "no column of labels; columns found: 'path', 'colour'. Name it"),
        (["path,label,class", "0.png,a,b"], "'label', 'class' are both columns of labels; keep one"),
        (["path,label,label", "0.png,a,b"], "two columns of the same name"),
        (["path,label", "0.png,cat", "1.png,cat"], "only one class ('cat'); at least two classes"),
        (["path,label", "0.png,cat,3"], "line 2: 3 fields, and 2 columns"),
        (["path,label", "0.png,"], "line 2: no label"),
        (["path,label", ",cat"], "line 2: no image file"),
        (["path,label", "0.txt,cat"], "line 2: '0.txt' is no image file by its name"),
        (["path,label,split", "0.png,cat,tset"], "line 2: split 'tset': expected train, val or test"),
        (["path,label,split", "0.png,cat,"], "line 2: no split"),
        (["path,label,split", "0.png,cat,test"], "rows of the splits 'test', but none of train"),
        (["path,label,split", *(f"{n}.png,cat,{s}" for n, s in enumerate(("train", "val", "valid")))],
         "'val', 'valid' mean the same split"),
        (["path,label", '"0.png,cat', "1.png,dog"], "line 3: unexpected end of data"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_message_that_says_what_to_change(folder, lines, message):
    path = table(folder, lines)
    assert message in refused(path)
    assert refused(path).startswith(f"data.root: {path}: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 1: is no JSON object"),
        ("{", "line 1: is no JSON: "),
        ('{"path": ["0.png"], "label": "cat"}', "line 1: no image file"),
        ('{"path": "0.png", "label": null}', "line 1: no label"),
        ('{"path": "0.png", "label": "\\ud800"}', "line 1: is no JSON: half a character"),
        ("[" * 100_000, "line 1: is no JSON"),
        ('{"path": "0.png", "label": NaN}', "line 1: is no JSON: NaN is no number of JSON"),
        (f'{{"path": "0.png", "label": {"9" * 5000}}}', "line 1: is no JSON: the number 9999"),
    ],
)
def test_a_wrong_json_line_is_named(folder, line, message):
    assert message in refused(table(folder, [line], "labels.jsonl"))


def test_all_wrong_rows_come_in_one_message(folder):
    message = refused(table(folder, ["path,label", *["0.png,"] * 7]))
    assert message.split("\n  ")[0].endswith("7 problems")
    assert message.split("\n  ")[1] == "line 2: no label"
    assert message.split("\n  ")[-1] == "and 2 more"


def test_problems_of_every_kind_come_together_in_the_order_of_lines(folder):
    lines = ["path,label", "0.png,cat", "0.png,dog", "1.png,", "../2.png,cat", "3.png"]
    message = refused(table(folder, lines))
    assert [line.split(":")[0] for line in message.split("\n  ")[1:]] == [
        "line 3", "line 4", "line 5", "line 6",
    ]  # fmt: skip


def test_another_encoding_is_said_with_the_line(folder):
    path = table(folder, ["path,label", "0.png,cat", "1.png,größe"], encoding="latin-1")
    assert "line 3: is not UTF-8; save the table as UTF-8" in refused(path)


def test_a_name_that_no_file_can_have_is_a_missing_file(folder):
    lines = ["path,label", *(f"{file},{label}" for file, label in rows()), f"{'x' * 300}.png,cat"]
    assert "(line 26: File name too long)" in opened(table(folder, lines)).warnings[0]


def test_a_pipe_or_a_device_is_no_table_and_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.csv")
    (folder / "device.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "device.csv"):
        assert f"{name}: cannot be read: it is no regular file" in refused(folder / name)


def test_no_such_table_and_another_file_are_told_apart(folder):
    assert "none.csv: no such file" in refused(folder / "none.csv")
    assert "A table of labels ends in .csv" in refused(folder / "0.png")


def test_a_class_whose_files_are_all_missing_is_an_error(folder):
    lines = ["path,label", *(f"{file},{label}" for file, label in rows()), "gone.png,bird"]
    assert "no image of 'bird' can be read" in refused(table(folder, lines))


def test_a_table_with_doubled_line_ends_is_read_and_one_of_empty_lines_is_not(folder, monkeypatch):
    monkeypatch.setattr(table_records, "MOST_REPEATS", 3)
    data = opened(comma_table(folder, end="\r\r\n"))
    assert sum(data.counts.values()) == COUNT
    lines = comma_table(folder).read_text().splitlines()
    assert "more than 3 lines before it are empty" in refused(table(folder, [*lines, *[""] * 4, lines[-1]]))
