"""Names of models in other protocols: what a view advertises, and which model a path names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.api.contracts.views import check_version, split_path, view_names, view_of
from app.http.problems import UnknownVersionError
from models.interface.errors import UnknownModelError
from models.interface.results import ModelCard


@pytest.fixture
def card(new_runtime: Callable[..., object]) -> ModelCard:
    found: ModelCard = new_runtime().cards["fake"]  # type: ignore[attr-defined]  # the fake runtime
    return found


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("fake", ("files", "probabilities")),
        ("fake@pixels", ("pixels", "probabilities")),
        ("fake@tensor", ("tensor", "probabilities")),
        ("fake@features", ("files", "features")),
        ("fake@pixels@features", ("pixels", "features")),
        ("fake@features@tensor", ("tensor", "features")),
    ],
)
def test_words_choose_input_and_output(card: ModelCard, name: str, seen: tuple[str, str]) -> None:
    view = view_of(card, name)

    assert (view.name, view.model, (view.input, view.output)) == (name, card, seen)


@pytest.mark.parametrize("words", ["@", "@logits", "@pixels@tensor", "@pixels@pixels", "@features@features"])
def test_other_words_name_no_model(card: ModelCard, words: str) -> None:
    with pytest.raises(UnknownModelError):
        view_of(card, f"fake{words}")


def test_a_model_without_classes_has_features_in_every_view(card: ModelCard) -> None:
    headless = replace(card, classes=0)

    assert view_of(headless).output == "features"
    assert view_names(headless) == ["fake", "fake@pixels", "fake@tensor"]


def test_every_listed_view_is_known(card: ModelCard) -> None:
    names = view_names(card)

    assert len(names) == 6
    assert [view_of(card, name).name for name in names] == names


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a", ("a", "")),
        ("a/versions/1", ("a", "versions/1")),
        ("a/b@pixels/versions/1", ("a/b@pixels", "versions/1")),
        ("a/b", ("a/b", "")),
        ("a@tensor", ("a@tensor", "")),
        ("ab/c", ("ab/c", "")),
        ("", ("", "")),
    ],
)
def test_the_longest_served_name_begins_the_path(card: ModelCard, path: str, parts: tuple[str, str]) -> None:
    assert split_path({"a": card, "a/b": card}, path) == parts


def test_version_1_is_always_served_and_so_is_that_of_the_card(card: ModelCard) -> None:
    reloaded = replace(card, version=7)

    for version in ("1", "1.0", "7", "7.0"):
        check_version(reloaded.name, reloaded.version, version)
    with pytest.raises(UnknownVersionError, match="no version '2'"):
        check_version(reloaded.name, reloaded.version, "2")
