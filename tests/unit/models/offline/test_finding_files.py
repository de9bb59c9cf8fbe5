"""models/offline/files.py: which files a job is about, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from models.images.formats import FORMATS, SUFFIXES
from models.interface.errors import JobError
from models.offline import files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.jpg, a/2.PNG, a/10.jpeg, and what is no image of a person's."""
    for file in ("b.jpg", "a/2.PNG", "a/10.jpeg", "a/notes.txt", ".hidden.jpg", ".cache/c.jpg", "d.jpg.part"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


def test_folders_are_searched_to_the_bottom_sorted_by_name_without_what_is_hidden_or_no_image(folder: Path) -> None:
    assert files.find([folder]) == [str(folder / name) for name in ("a/10.jpeg", "a/2.PNG", "b.jpg")]


def test_what_is_named_is_taken_in_the_order_given_whatever_it_is_called(folder: Path) -> None:
    named = [folder / "d.jpg.part", folder / "a", folder / ".hidden.jpg"]

    assert files.find(named) == [str(folder / name) for name in ("d.jpg.part", "a/10.jpeg", "a/2.PNG", ".hidden.jpg")]


def test_a_file_that_is_named_twice_is_taken_once(folder: Path) -> None:
    assert len(files.find([folder / "b.jpg", folder, folder / "a"])) == 3


def test_names_are_relative_where_the_folder_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    assert files.find([Path("a")]) == ["a/10.jpeg", "a/2.PNG"]


def test_a_link_is_followed_and_one_that_leads_back_ends(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "e.jpg").touch()
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)

    found = files.find([folder])

    assert str(folder / "linked" / "e.jpg") in found
    assert len(found) < 10


def test_a_path_that_is_not_there_and_a_folder_without_images_are_said(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no-such is not there"):
        files.find([tmp_path / "no-such"])
    with pytest.raises(JobError, match="there is no image in"):
        files.find([tmp_path])


def test_a_name_that_is_no_utf_8_can_be_written() -> None:
    assert files.name(os.fsdecode(b"caf\xe9/\xc3\xa9.jpg")) == r"caf\udce9/é.jpg"


def test_suffixes_are_those_that_pillow_knows_of_the_formats_that_are_read() -> None:
    Image.init()
    read = {"MPO", *FORMATS}

    assert {suffix for suffix, kind in Image.registered_extensions().items() if kind in read} == SUFFIXES
