"""What Ray is told of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from app.ray_serve.options import Replicas, deployment_options
from app.settings import Settings

_CONFIG = Path(__file__).parents[4] / "docker" / "ray" / "serve.yaml"


def options(settings: Settings | None = None, **arguments: Any) -> dict[str, Any]:
    return deployment_options(Replicas(**arguments), settings or Settings())


def test_the_number_of_replicas_is_fixed_unless_it_follows_the_requests_inside() -> None:
    fixed = options(replicas=3)
    following = options(min_replicas=2, max_replicas=8, num_cpus=2)

    assert (fixed["num_replicas"], "autoscaling_config" in fixed) == (3, False)
    assert "num_replicas" not in following
    assert following["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": 8}


def test_a_fair_load_is_what_one_forward_takes_unless_it_is_said() -> None:
    batch = options(Settings(max_batch_size=16), max_replicas=8)
    said = options(Settings(max_batch_size=16), max_replicas=8, target_ongoing_requests=4)

    assert batch["autoscaling_config"]["target_ongoing_requests"] == 16
    assert said["autoscaling_config"]["target_ongoing_requests"] == 4


def test_a_full_replica_is_asked_nevertheless_because_it_refuses_better_than_the_proxy() -> None:
    told = options(Settings(queue_capacity=100))

    assert told["max_ongoing_requests"] > 100
    assert told["backpressure_config"]["status_code"] == 429


def test_a_replica_has_longer_to_end_than_its_requests_have() -> None:
    assert options(Settings(drain_timeout_s=50))["graceful_shutdown_timeout_s"] > 50


def test_cores_and_gpus_are_rays_to_give() -> None:
    assert options(num_gpus=0.5, num_cpus=2)["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5}
    # Threads are whole.
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
def test_an_argument_that_cannot_be_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Replicas(**arguments)


def test_the_config_file_asks_for_what_there_is() -> None:
    [application] = yaml.safe_load(_CONFIG.read_text())["applications"]

    assert application["import_path"] == "app.ray_serve.serve:deployment"
    assert Replicas(**application["args"]).max_replicas == 8
