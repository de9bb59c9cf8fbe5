"""Names of classes out of files: as text or JSON, in the order of their indices, and nothing guessed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.interface.errors import ModelFolderError
from models.model_folder import building


def file_of(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog\nred fox\n"),
        ("labels.txt", "\ufeffcat\r\ndog \r\nred fox\r\n\r\n"),
        ("labels.json", '["cat", "dog", "red fox"]'),
        ("labels.json", '{"2": "red fox", "0": "cat", "1": "dog"}'),
        ("class_to_idx.json", '{"red fox": 2, "cat": 0, "dog": 1}'),
    ],
)
def test_names_stand_in_the_order_of_their_indices(tmp_path: Path, name: str, text: str) -> None:
    assert building.read_labels(file_of(tmp_path, name, text)) == ("cat", "dog", "red fox")


def test_ten_and_two_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    indices = ", ".join(f'"{index}": "class {index}"' for index in reversed(range(12)))
    assert building.read_labels(file_of(tmp_path, "labels.json", f"{{{indices}}}"))[10] == "class 10"


def test_classes_that_are_named_by_digits_keep_their_indices(tmp_path: Path) -> None:
    assert building.read_labels(file_of(tmp_path, "class_to_idx.json", '{"7": 0, "3": 1}')) == ("7", "3")


@pytest.mark.timeout(30)
def test_a_pipe_instead_of_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.txt")
    with pytest.raises(ModelFolderError, match="is not a regular file"):
        building.read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.txt", "cat\n\ndog\n", "line 2 is empty, and would be the name of class 1"),
        ("labels.txt", "\n", "holds no name"),
        ("labels.json", "{", "is not JSON"),
        ("labels.json", "3", "must be a list of names"),
        ("labels.json", "{}", "must be a list of names"),
        ("labels.json", '["cat", 3]', "must be a list of names"),
        ("labels.json", '{"1": "cat", "2": "dog"}', "none of index 0; indices begin at 0"),
        ("labels.json", '{"cat": 0, "dog": 0}', "two names have the same index"),
        ("labels.json", "[" * 100_000, "is not JSON"),
        ("labels.txt", "x" * 1001, "has a name of 1001 characters"),
        ("labels.txt", "x\n" * 1_000_001, "has 1000001 names; at most 1000000 are read"),
        ("labels.txt", "x" * (32 * 2**20 + 1), "is larger than 32 MiB"),
    ],
)
def test_an_invalid_list_of_labels_is_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ModelFolderError) as refused:
        building.read_labels(file_of(tmp_path, name, text))
    assert message in str(refused.value)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
