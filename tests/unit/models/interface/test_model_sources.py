"""GRADLESS_MODELS may state a name for a source, but not every name. A path may begin with ~."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.interface.errors import StartError
from models.interface.model_sources import check_name, expand_home, split_name


@pytest.mark.parametrize(
    ("stated", "parts"),
    [
        ("resnet50", (None, "resnet50")),
        ("mine=/mnt/models", ("mine", "/mnt/models")),
        ("a/b:c=./folder=1", ("a/b:c", "./folder=1")),
        ("./a=b", (None, "./a=b")),
        ("/mnt/a=b", (None, "/mnt/a=b")),
        ("~/a=b", (None, "~/a=b")),
        ("=x", (None, "=x")),
        ("x=", (None, "x=")),
    ],
)
def test_only_a_name_before_the_sign_is_a_name(stated: str, parts: tuple[str | None, str]) -> None:
    assert split_name(stated) == parts


@pytest.mark.parametrize("name", ["a:predict", "timm/b:explain", "a:random:predict"])
def test_no_model_is_named_like_an_operation_on_a_model(name: str) -> None:
    with pytest.raises(StartError, match="use another name"):
        check_name(name)


@pytest.mark.parametrize("name", ["predict", "a:predict:b", "a:predictor", "a_predict"])
def test_only_the_end_of_a_name_counts(name: str) -> None:
    assert check_name(name) == name


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
