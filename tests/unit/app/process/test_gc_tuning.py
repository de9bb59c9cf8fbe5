"""What an application has loaded holds up no request: the garbage collector does not look through it again."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from app.process.gc_tuning import freeze_loaded_objects

# Far less than modules alone make up.
_MANY = 10_000


@pytest.mark.anyio
async def test_what_is_loaded_is_left_out_of_collections_until_the_application_ends(
    application: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process of its own.
    monkeypatch.setattr("app.main.freeze_loaded_objects", freeze_loaded_objects)
    app = application()
    async with app.router.lifespan_context(app):
        assert gc.get_freeze_count() > _MANY
        assert len(gc.get_objects()) < _MANY
    assert gc.get_freeze_count() == 0
