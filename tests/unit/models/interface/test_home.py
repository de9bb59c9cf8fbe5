"""Paths that begin with ~, also for a user who has no home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.interface.errors import StartError
from models.interface.home import expand_home


def test_the_home_folder_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert expand_home(Path("~/cache")) == tmp_path / "cache"
    assert expand_home(Path("/var/cache")) == Path("/var/cache")


def test_the_error_for_a_user_without_a_home_folder_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)

    with pytest.raises(StartError, match=r"^~/cache cannot be expanded.*set HOME, or use a path without ~$"):
        expand_home(Path("~/cache"))
