"""What a replica says of itself when Ray asks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from app.scale.replica import Replica
from app.settings import Settings


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A replica says how its process logs, and this is not its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # None of pytest's: they would be closed.
    root.handlers[:] = []
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _cores_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica says how many cores its process has, and this one has others to test."""
    monkeypatch.setattr("models.devices._agreed_cores", None)


@pytest.mark.anyio
async def test_a_replica_is_well_while_its_models_are_ready() -> None:
    replica = Replica(Settings(models=("null",)), cores=1)
    # As Ray does it.
    lifespan = LifespanOn(Config(replica.__serve_build_asgi_app__(), lifespan="on", log_config=None))
    with pytest.raises(RuntimeError, match="not ready"):
        replica.check_health()

    await lifespan.startup()
    replica.check_health()

    await lifespan.shutdown()
    with pytest.raises(RuntimeError, match="not ready"):
        replica.check_health()


@pytest.mark.anyio
async def test_a_model_that_does_not_start_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    replica = Replica(Settings(models=("resnet5",)), cores=1)
    lifespan = LifespanOn(Config(replica.__serve_build_asgi_app__(), lifespan="on", log_config=None))
    await lifespan.startup()

    assert lifespan.should_exit
    assert "cannot start: no model is named 'resnet5'" in capsys.readouterr().err
