"""What Ray is told of the service, and what a replica says of itself, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from app.scale.replica import Replica
from app.scale.serve import Replicas, deployment
from app.settings import Settings

_CONFIG = Path(__file__).parents[2] / "docker" / "ray" / "serve.yaml"


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make Serve's own description of the deployment, of arguments and settings."""

    def make(settings: dict[str, str] | None = None, **arguments: Any) -> Any:
        for name, value in (settings or {}).items():
            monkeypatch.setenv(name, value)
        return deployment(Replicas(**arguments))._bound_deployment

    return make


def test_the_number_of_replicas_is_fixed_or_follows_the_requests_inside(deployed: Any) -> None:
    fixed = deployed(replicas=3)
    following = deployed(min_replicas=2, max_replicas=8)
    sparse = deployed(max_replicas=8, target_ongoing_requests=4)

    assert (fixed.num_replicas, fixed._deployment_config.autoscaling_config) == (3, None)
    scaling = following._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 8, 32)
    assert sparse._deployment_config.autoscaling_config.target_ongoing_requests == 4


def test_places_and_times_follow_the_settings(deployed: Any) -> None:
    served = deployed({"GRADLESS_QUEUE_CAPACITY": "100", "GRADLESS_DRAIN_TIMEOUT_S": "50"}, num_gpus=0.5, num_cpus=2)

    # A full replica is asked nevertheless: it refuses better than the proxy does.
    assert served.max_ongoing_requests > 100
    assert served._deployment_config.backpressure_config.status_code == 429
    assert served._deployment_config.graceful_shutdown_timeout_s > 50
    assert served.ray_actor_options == {"num_cpus": 2, "num_gpus": 0.5}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas"),
        ({"num_cpus": 0}, "num_cpus"),
    ],
)
def test_an_argument_that_cannot_be_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Replicas(**arguments)


def test_the_config_file_asks_for_what_there_is() -> None:
    [application] = yaml.safe_load(_CONFIG.read_text())["applications"]
    module, _, name = application["import_path"].partition(":")

    assert (module, name) == (deployment.__module__, deployment.__name__)
    assert Replicas(**application["args"]).max_replicas == 8


@pytest.mark.anyio
async def test_a_replica_is_well_while_its_models_are_ready() -> None:
    replica = Replica(Settings(models=("null",)), cores=1)
    replica.__serve_build_asgi_app__()
    with pytest.raises(RuntimeError, match="not ready"):
        replica.check_health()

    app = replica.app
    async with app.router.lifespan_context(app):
        replica.check_health()
        app.state.parts.runtime.drain()
        with pytest.raises(RuntimeError, match="not ready"):
            replica.check_health()
