"""Health checks, metrics and start failures of one replica."""

from __future__ import annotations

import logging
import re
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
def _restore_logging() -> Iterator[None]:
    """A replica configures the logging of its process, which here is pytest's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # pytest's handlers are taken out, because the replica would close them.
    root.handlers[:] = []
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _restore_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica sets the number of cores of its process, which other tests use too."""
    monkeypatch.setattr("models.hardware.cores._core_limit", None)


@pytest.mark.anyio
async def test_the_health_check_of_a_replica_passes_while_its_models_are_ready() -> None:
    replica = Replica(Settings(models=("null",)), cores=1)
    # As Ray runs the lifespan.
    lifespan = LifespanOn(Config(replica.__serve_build_asgi_app__(), lifespan="on", log_config=None))
    with pytest.raises(RuntimeError, match="not ready"):
        replica.check_health()

    await lifespan.startup()
    replica.check_health()

    await lifespan.shutdown()
    with pytest.raises(RuntimeError, match="not ready"):
        replica.check_health()


@pytest.mark.anyio
async def test_a_scrape_shows_the_scraped_replica_if_ray_cannot_reach_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def time_out(*_: object, **__: object) -> None:
        raise TimeoutError("Timed out waiting for broadcast results.")

    context = SimpleNamespace(replica_tag="scraped", deployment="gradless", app_name="default")
    handle = SimpleNamespace(broadcast=lambda *_: SimpleNamespace(results=time_out))
    serve = SimpleNamespace(get_replica_context=lambda: context, get_deployment_handle=lambda *_: handle)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    replica = Replica(Settings(models=("null",)), cores=1)
    app = replica.__serve_build_asgi_app__()
    lifespan = LifespanOn(Config(app, lifespan="on", log_config=None))
    await lifespan.startup()

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
        scraped = await client.get("/metrics")
    await lifespan.shutdown()

    assert scraped.status_code == 200
    assert re.search(r'^gradless_build_info{.*replica="scraped".*} 1.0$', scraped.text, re.MULTILINE)
    assert "Timed out waiting" in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_model_that_cannot_be_loaded_is_logged_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    replica = Replica(Settings(models=("resnet5",)), cores=1)
    lifespan = LifespanOn(Config(replica.__serve_build_asgi_app__(), lifespan="on", log_config=None))
    await lifespan.startup()

    assert lifespan.should_exit
    assert "cannot start: no model is named 'resnet5'" in capsys.readouterr().err
