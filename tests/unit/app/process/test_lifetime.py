"""Loaded objects are excluded from garbage collection while an application runs."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from app.process.lifetime import freeze_loaded_objects

# Imported modules alone have many times this number of objects.
_MANY_OBJECTS = 10_000


@pytest.mark.anyio
async def test_loaded_objects_are_frozen_until_the_application_ends(
    application: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fixtures replace the function, because freezing would last for the whole test process.
    monkeypatch.setattr("app.main.freeze_loaded_objects", freeze_loaded_objects)
    app = application()
    async with app.router.lifespan_context(app):
        assert gc.get_freeze_count() > _MANY_OBJECTS
        assert len(gc.get_objects()) < _MANY_OBJECTS
    assert gc.get_freeze_count() == 0
