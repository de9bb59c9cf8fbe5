"""What a replica says of itself when Ray asks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import httpx2
import pytest
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from app.ray_serve.replica import Replica
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
    monkeypatch.setattr("models.hardware.cores._core_limit", None)


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
async def test_a_scrape_tells_of_the_replica_that_was_asked_when_ray_does_not_reach_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreached(*_: object, **__: object) -> None:
        raise TimeoutError("Timed out waiting for broadcast results.")

    context = SimpleNamespace(replica_tag="asked", deployment="gradless", app_name="default")
    handle = SimpleNamespace(broadcast=lambda *_: SimpleNamespace(results=unreached))
    serve = SimpleNamespace(get_replica_context=lambda: context, get_deployment_handle=lambda *_: handle)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    replica = Replica(Settings(models=("null",)), cores=1)
    app = replica.__serve_build_asgi_app__()
    lifespan = LifespanOn(Config(app, lifespan="on", log_config=None))
    await lifespan.startup()

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as caller:
        scraped = await caller.get("/metrics")
    await lifespan.shutdown()

    assert scraped.status_code == 200
    assert 'gradless_build_info{replica="asked",' in scraped.text
    assert "Timed out waiting" in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_model_that_does_not_start_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    replica = Replica(Settings(models=("resnet5",)), cores=1)
    lifespan = LifespanOn(Config(replica.__serve_build_asgi_app__(), lifespan="on", log_config=None))
    await lifespan.startup()

    assert lifespan.should_exit
    assert "cannot start: no model is named 'resnet5'" in capsys.readouterr().err
