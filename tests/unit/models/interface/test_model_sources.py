"""GRADLESS_MODELS may state a name for a source."""

from __future__ import annotations

import pytest

from models.interface.model_sources import split_name


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
