"""How Ray is to run the service: what is said for a deployment, and what follows from the settings."""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.settings import Settings

# What Serve's own refusals say in Retry-After, which know nothing of how long a place will take to be free.
_RETRY_AFTER_S = 1

# How often a model is tried to be loaded before the deployment has failed: a wrong name will not get right.
_STARTS = 3

# Beyond GRADLESS_DRAIN_TIMEOUT_S: for threads to end, before Ray ends the process.
_ENDING_S = 10

_WAIT_LOOP_S = 0.5
_HEALTH_PERIOD_S = 5


class Replicas(BaseModel):
    """What `serve run` takes as NAME=VALUE, and a config file under `args`. With `max_replicas` their number follows
    the load, between `min_replicas` and that."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(1, ge=1, description="replicas, where they do not follow the load")
    min_replicas: int = Field(1, ge=1, description="replicas at least; with max_replicas")
    max_replicas: int | None = Field(None, ge=1, description="replicas at most; unset: `replicas`, whatever the load")
    target_ongoing_requests: float | None = Field(
        None, gt=0, description="requests in a replica that are its fair load; unset: as many images as a forward takes"
    )
    num_cpus: float = Field(1, gt=0, description="cores of a replica: for decoding, and for forwards on a CPU")
    num_gpus: float = Field(0, ge=0, description="GPUs of a replica; under 1: replicas share one")

    @model_validator(mode="after")
    def _what_follows_the_load_has_an_end(self) -> Self:
        for name in ("min_replicas", "target_ongoing_requests"):
            if name in self.model_fields_set and self.max_replicas is None:
                raise ValueError(f"{name} is for replicas that follow the load: it needs max_replicas")
        return self

    @model_validator(mode="after")
    def _some_load_can_be_followed(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least min_replicas ({self.min_replicas})")
        return self

    @property
    def cores(self) -> int:
        """Whole ones, as threads are."""
        return math.ceil(self.num_cpus)


def deployment_options(arguments: Replicas, settings: Settings) -> dict[str, Any]:
    """What serve.deployment takes."""
    return {
        "ray_actor_options": {"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        # Twice the places: a full replica is to refuse by itself, at once, with a problem and how long to wait. Probes
        # and scrapes come through as well.
        "max_ongoing_requests": 2 * settings.queue_capacity,
        "max_queued_requests": settings.queue_capacity,
        "backpressure_config": {"status_code": 429, "retry_after_s": _RETRY_AFTER_S},
        "graceful_shutdown_wait_loop_s": _WAIT_LOOP_S,
        "graceful_shutdown_timeout_s": settings.drain_timeout_s + _ENDING_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "max_constructor_retry_count": _STARTS,
        **_number(arguments, settings),
    }


def _number(arguments: Replicas, settings: Settings) -> dict[str, Any]:
    if arguments.max_replicas is None:
        return {"num_replicas": arguments.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.target_ongoing_requests or _images_of_a_forward(arguments, settings),
        }
    }


def _images_of_a_forward(arguments: Replicas, settings: Settings) -> int:
    """Largest batch of one forward; unset, as `default_max_batch_size` in models/backends decides.

    With fewer requests in flight a forward runs half empty; more of them wait for the next forward."""
    return settings.max_batch_size or (32 if arguments.num_gpus else min(32, 4 * arguments.cores))
