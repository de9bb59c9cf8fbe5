"""models/loading/catalog.py: a client with the `admin` right loads a model of the catalog or of one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.interface.errors import StartError, UnknownSourceError
from models.loading import catalog
from models.networks.specs import ModelSpec


@pytest.fixture
def models_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for name in ("flowers/v2", "resnet18"):
        (folder / name).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "inside").symlink_to(folder / "flowers")
    (folder / "file").write_text("no folder")
    return folder


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names looked up in the operator's catalog."""
    names: list[str] = []

    def find(requested: str) -> ModelSpec:
        names.append(requested)
        return catalog.named("null")

    monkeypatch.setattr(catalog, "find", find)
    return names


def test_a_name_of_the_catalog_is_found_and_served_under_the_requested_name() -> None:
    spec = catalog.from_request("resnet18:random", "canary", None)()
    assert (spec.name, spec.architecture) == ("canary", "resnet18")


def test_a_client_cannot_name_a_model_like_an_operation() -> None:
    with pytest.raises(StartError, match="canary:explain"):
        catalog.from_request("resnet18:random", "canary:explain", None)()


def test_the_error_for_an_unknown_name_has_similar_names_and_names_the_models_folder(models_folder: Path) -> None:
    for folder, lacking in ((models_folder, "has no folder of that name"), (None, "is not set")):
        with pytest.raises(UnknownSourceError, match=f"GRADLESS_MODELS_FOLDER {lacking}, .* did you mean resnet18"):
            catalog.from_request("resnet18x", "m", folder)()


@pytest.mark.parametrize(
    ("source", "folder"),
    [("flowers/v2", "flowers/v2"), ("flowers", "flowers"), ("inside", "flowers"), ("resnet18", "resnet18")],
)
def test_a_folder_of_the_models_folder_takes_precedence_over_a_name(
    models_folder: Path, found: list[str], source: str, folder: str
) -> None:
    assert catalog.from_request(source, "m", models_folder)().name == "m"
    assert found == [str((models_folder / folder).resolve())]


@pytest.mark.parametrize(
    "source",
    [
        "../elsewhere",
        "flowers/../../elsewhere",
        "/etc",
        "~/models",
        "./flowers",
        ".",
        "",
        "flowers\\..",
        "flowers\n",
        "file:///etc",
        "link",
        "link/.",
    ],
)
def test_no_source_leads_out_of_the_models_folder(models_folder: Path, found: list[str], source: str) -> None:
    with pytest.raises(UnknownSourceError):
        catalog.from_request(source, "m", models_folder)()
    assert found == []


@pytest.mark.parametrize("source", ["flowers", "file", "resnet18.d"])
def test_a_missing_folder_of_the_models_folder_is_not_searched_elsewhere(
    models_folder: Path, found: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    (tmp_path / source).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartError):
        catalog.from_request(source, "m", None if source == "flowers" else models_folder)()
    assert found == []


def test_the_operator_may_name_anything(found: list[str]) -> None:
    spec = catalog.named("null")
    assert catalog.from_operator(spec)() is spec
    catalog.from_operator("/anywhere/at/all")()
    assert found == ["/anywhere/at/all"]
