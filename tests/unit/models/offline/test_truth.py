"""models/offline/truth.py: true classes from folders or from a list, resolved to classes of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.interface.errors import JobError
from models.offline import truth

LABELS = ("tench", "black swan", "crane", "crane", "7")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in ("tench/a.jpg", "tench/deep/b.jpg", "black_swan/c.jpg"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


def test_each_folder_is_a_class_with_all_files_below(folder: Path) -> None:
    assert truth.by_folder(folder) == {
        str(folder / "black_swan/c.jpg"): "black_swan",
        str(folder / "tench/a.jpg"): "tench",
        str(folder / "tench/deep/b.jpg"): "tench",
    }


def test_a_file_is_no_folder_of_classes(folder: Path) -> None:
    file = next(path for path in folder.rglob("*") if path.is_file())
    with pytest.raises(JobError, match="is no folder"):
        truth.by_folder(file)


def test_an_image_outside_of_a_folder_of_a_class_is_an_error(folder: Path) -> None:
    (folder / "d.jpg").touch()
    with pytest.raises(JobError, match=r"d\.jpg is in no folder of a class"):
        truth.by_folder(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'path,label\na.jpg,tench\n"b,1.jpg",black swan\n'),
        ("list.csv", 'a.jpg,tench\r\n\r\n"b,1.jpg",black swan'),
        ("list.txt", "a.jpg tench\nb,1.jpg black swan\n"),
        ("list.tsv", "a.jpg\ttench\nb,1.jpg\tblack swan\n"),
    ],
)
def test_a_list_has_a_path_and_a_label_per_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert truth.by_list(tmp_path / name, Path("set")) == {"set/a.jpg": "tench", "set/b,1.jpg": "black swan"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,tench\nb.jpg\n", "line 2: expected a path and a label"),
        ("", "names no file"),
        ("path,label\n", "names no file"),
    ],
)
def test_an_invalid_list_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(JobError, match=message):
        truth.by_list(tmp_path / "list.csv", tmp_path)


def test_a_missing_or_binary_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read: No such file"):
        truth.by_list(tmp_path / "list.csv", tmp_path)
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="not UTF-8 text"):
        truth.by_list(tmp_path / "list.csv", tmp_path)


@pytest.mark.parametrize(
    ("name", "index"), [("tench", 0), ("Black_Swan", 1), ("black swan", 1), ("2", 2), ("3", 3), ("7", 4)]
)
def test_a_class_is_found_by_label_in_any_spelling_or_by_index(name: str, index: int) -> None:
    found = truth.of({"a.jpg": name}, LABELS)
    found.check(ignore_unknown=False)
    assert found.classes == {"a.jpg": index}


@pytest.mark.parametrize("name", ["crane", "5", "-1", ""])
def test_a_label_of_no_class_or_of_several_is_unknown(name: str) -> None:
    assert list(truth.of({"a.jpg": name}, LABELS).unknown) == [name]


def test_unknown_names_are_listed_with_similar_labels_and_can_be_skipped() -> None:
    found = truth.of({"a.jpg": "tensh", "b.jpg": "tench", "c.jpg": "zzz"}, LABELS)
    with pytest.raises(JobError, match=r"'tensh', did you mean 'tench'\?; 'zzz' \(--ignore-unknown leaves"):
        found.check(ignore_unknown=False)
    found.check(ignore_unknown=True)
    assert found.classes == {"b.jpg": 0}


def test_skipping_all_images_is_an_error() -> None:
    with pytest.raises(JobError, match=r"'zzz'$"):
        truth.of({"c.jpg": "zzz"}, LABELS).check(ignore_unknown=True)
