"""The start and the end of a process: frozen objects, signals."""

from __future__ import annotations

import gc
import subprocess
import sys
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


@pytest.mark.parametrize(("serves", "status"), [(False, 0), (True, 5)])
def test_a_signal_ends_a_start_that_hangs_but_not_once_there_may_be_requests(*, serves: bool, status: int) -> None:
    # Its handler does not end it, as that of a main thread in native code would not.
    start = f"""
import signal, sys, threading
from app.process.lifetime import ended_by_signals
signal.signal(signal.SIGTERM, lambda *_: None)
with ended_by_signals(lambda: {serves}):
    signal.raise_signal(signal.SIGTERM)
    threading.Event().wait(2 if {serves} else 30)
sys.exit(5)
"""
    assert subprocess.run([sys.executable, "-c", start], timeout=60, check=False).returncode == status
