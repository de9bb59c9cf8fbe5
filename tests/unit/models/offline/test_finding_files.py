"""models/offline/files.py: the files of a job, and their order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

import models.images.pillow_reading  # noqa: F401 - registers the suffixes of HEIC with Pillow
from models.images.formats import PILLOW_NAMES, SUFFIXES
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


def test_folders_are_searched_recursively_for_images_sorted_by_name(folder: Path) -> None:
    assert files.find([folder]) == [str(folder / name) for name in ("a/10.jpeg", "a/2.PNG", "b.jpg")]


def test_files_given_by_name_are_taken_in_order_with_any_suffix(folder: Path) -> None:
    named = [folder / "d.jpg.part", folder / "a", folder / ".hidden.jpg"]

    assert files.find(named) == [str(folder / name) for name in ("d.jpg.part", "a/10.jpeg", "a/2.PNG", ".hidden.jpg")]


def test_a_file_given_twice_is_taken_once(folder: Path) -> None:
    assert len(files.find([folder / "b.jpg", folder, folder / "a"])) == 3


def test_names_are_relative_if_the_folder_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    assert files.find([Path("a")]) == ["a/10.jpeg", "a/2.PNG"]


def test_links_are_followed_without_cycles(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "e.jpg").touch()
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)

    found = files.find([folder])

    assert str(folder / "linked" / "e.jpg") in found
    assert len(found) < 10


def test_what_is_not_read_is_counted_by_kind_with_examples(folder: Path) -> None:
    for file in ("a/1.xcf", "a/2.xcf", ".thumbs", "README"):
        (folder / file).touch()
    (folder / "gone.png").symlink_to(folder / "no-such")
    (folder / "in a circle").symlink_to("in a circle")
    reports: list[str] = []

    found = files.find([folder], reports.append)

    [report] = reports
    assert report == (
        "not read: 1 hidden folder (.cache), 2 hidden files (.hidden.jpg, .thumbs), "
        "2 dangling links (gone.png, in a circle), 5 other files (2 .xcf, 1 without a suffix, 1 .txt, …)"
    )
    # A job says of it that it cannot be read.
    assert str(folder / "gone.png") in found


def test_nothing_is_reported_if_everything_is_read(folder: Path) -> None:
    reports: list[str] = []
    files.find([folder / "b.jpg"], reports.append)
    assert reports == []


def test_a_folder_of_other_formats_says_which(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.xcf").touch()
    with pytest.raises(JobError, match=r"there is no image in .*; not read: 12 other files \(12 \.xcf\)"):
        files.find([tmp_path])


def test_a_missing_path_and_a_folder_without_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no-such does not exist"):
        files.find([tmp_path / "no-such"])
    with pytest.raises(JobError, match="there is no image in"):
        files.find([tmp_path])


def test_a_name_that_is_not_utf_8_is_escaped() -> None:
    assert files.name(os.fsdecode(b"caf\xe9/\xc3\xa9.jpg")) == r"caf\udce9/é.jpg"


def test_suffixes_are_pillows_for_the_supported_formats() -> None:
    Image.init()
    read = {"MPO", *PILLOW_NAMES.values()}

    assert {suffix for suffix, kind in Image.registered_extensions().items() if kind in read} == SUFFIXES
