"""The tree drawn in the docstring of models/interface/errors.py is the tree of its classes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from models.interface import errors
from models.interface.errors import GradlessError

_DRAWN = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>\w+Error)\b", re.MULTILINE)


def _drawn_tree() -> set[tuple[str, str | None]]:
    """(class, parent) of each line of the drawing; four columns are one level."""
    tree: set[tuple[str, str | None]] = set()
    path: list[str] = []
    for line in _DRAWN.finditer(errors.__doc__ or ""):
        depth = len(line["indent"]) // 4
        del path[depth:]
        tree.add((line["name"], path[-1] if path else None))
        path.append(line["name"])
    return tree


def _defined_tree() -> set[tuple[str, str | None]]:
    classes = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, BaseException)]
    return {(found.__name__, None if found is GradlessError else found.__base__.__name__) for found in classes}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert _drawn_tree() == _defined_tree()
    assert len(_drawn_tree()) > 20


_ERRORS: list[tuple[GradlessError, list[str]]] = [
    (errors.UnknownCatalogNameError("resnet5", ["resnet50"]), ["resnet5", "resnet50"]),
    (errors.WeightsUnavailableError("m", "no route", "Fetch it."), ["m", "no route", "Fetch it."]),
    (errors.TooManyPixelsError(70, 90, 600), ["70", "90", "600"]),
    (errors.TooElongatedError(7, 900, 50), ["7", "900", "50"]),
    (errors.ImageTooLargeError(1234), ["1234"]),
    (errors.UnsupportedFormatError(["PNG", "GIF"]), ["PNG, GIF"]),
    (errors.UndecodableImageError("PNG", "cut short"), ["PNG", "cut short"]),
    (errors.DeadlineExceededError(2.5), ["2.5 s"]),
    (errors.UnknownModelError("b", ["a", "c"]), ["'b'", "a, c"]),
    (errors.ForwardError("m", "it broke"), ["m", "it broke"]),
]


def _name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Exception) else ""


@pytest.mark.parametrize(("error", "facts"), _ERRORS, ids=_name)
def test_a_message_is_one_line_that_holds_the_facts(error: GradlessError, facts: list[str]) -> None:
    assert "\n" not in str(error)
    assert all(fact in str(error) for fact in facts)


@pytest.mark.parametrize("error", [error for error, _ in _ERRORS], ids=_name)
def test_an_error_is_the_same_in_another_process(error: GradlessError) -> None:
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own

    assert type(arrived) is type(error)
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))
