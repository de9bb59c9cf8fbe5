"""Options of the Ray Serve deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from app.ray_serve.serve import Replicas, deployment_options
from app.settings import Settings

_CONFIG = Path(__file__).parents[4] / "docker" / "ray" / "serve.yaml"


def options(settings: Settings | None = None, **arguments: Any) -> dict[str, Any]:
    return deployment_options(Replicas(**arguments), settings or Settings())


def test_the_number_of_replicas_is_fixed_without_max_replicas() -> None:
    fixed = options(replicas=3)
    autoscaled = options(min_replicas=2, max_replicas=8, num_cpus=2)

    assert (fixed["num_replicas"], "autoscaling_config" in fixed) == (3, False)
    assert "num_replicas" not in autoscaled
    assert autoscaled["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": 8}


def test_the_target_of_concurrent_requests_is_the_maximum_batch_size_by_default() -> None:
    batch = options(Settings(max_batch_size=16), max_replicas=8)
    explicit = options(Settings(max_batch_size=16), max_replicas=8, target_ongoing_requests=4)

    assert batch["autoscaling_config"]["target_ongoing_requests"] == 16
    assert explicit["autoscaling_config"]["target_ongoing_requests"] == 4


def test_a_replica_at_capacity_still_gets_requests_because_its_refusals_are_better_than_the_proxys() -> None:
    found = options(Settings(queue_capacity=100))

    assert found["max_ongoing_requests"] > 100
    assert found["backpressure_config"]["status_code"] == 429


def test_a_replica_has_more_time_to_end_than_its_requests() -> None:
    assert options(Settings(drain_timeout_s=50))["graceful_shutdown_timeout_s"] > 50


def test_ray_reserves_cores_and_gpus_for_a_replica() -> None:
    assert options(num_gpus=0.5, num_cpus=2)["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5}
    # A number of threads is an integer.
    assert Replicas(num_cpus=0.5).cores == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas"),
        ({"min_replicas": 4}, "min_replicas is .* it needs max_replicas"),
        ({"target_ongoing_requests": 4}, "target_ongoing_requests is .* it needs max_replicas"),
        ({"num_cpus": 0}, "num_cpus"),
    ],
)
def test_an_invalid_argument_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Replicas(**arguments)


def test_the_config_file_is_valid() -> None:
    [application] = yaml.safe_load(_CONFIG.read_text())["applications"]

    assert application["import_path"] == "app.ray_serve.serve:deployment"
    assert Replicas(**application["args"]).max_replicas == 8
