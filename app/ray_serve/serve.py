"""`serve run app.ray_serve.serve:deployment replicas=2`: gradless as an application of Ray Serve.

GRADLESS_* variables configure the replicas. They are read where `deployment` runs and travel to the replicas with the
application. For a config file Ray calls `deployment` in a task on the cluster, which sees the variables of the file's
`runtime_env`.
"""
# Without `from __future__ import annotations`: Ray reads the class of `arguments` from the annotation.

import math
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.ray_serve.replica import Replica
from app.settings import Settings, SettingsError, load_settings
from models.interface.model_sources import split_name
from models.model_folder.description import FILE_NAME

# Retry-After of refusals by Serve itself, which cannot estimate the time until a replica has capacity.
_RETRY_AFTER_S = 1

# Starts of a replica before the deployment fails: a wrong model name fails every time.
_MAX_STARTS = 3

# Added to GRADLESS_DRAIN_TIMEOUT_S for threads to end, before Ray kills the process.
_END_MARGIN_S = 10

_WAIT_LOOP_S = 0.5
_HEALTH_PERIOD_S = 5

# Settings that name files.
_PATHS = ("models_folder", "cache_folder", "calibration_folder", "search_index", "api_keys_file")


class Replicas(BaseModel):
    """Arguments of `serve run` (NAME=VALUE) or, in a config file, `args`.

    With `max_replicas` Ray scales the replicas by the load, between `min_replicas` and `max_replicas`.
    """

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(1, ge=1, description="number of replicas without autoscaling")
    min_replicas: int = Field(1, ge=1, description="minimum number of replicas; needs max_replicas")
    max_replicas: int | None = Field(None, ge=1, description="maximum number of replicas; unset: no autoscaling")
    target_ongoing_requests: float | None = Field(
        None, gt=0, description="target of concurrent requests per replica; unset: the maximum batch size"
    )
    num_cpus: float = Field(1, gt=0, description="CPU cores per replica, for decoding and for forwards on the CPU")
    num_gpus: float = Field(0, ge=0, description="GPUs per replica; below 1, replicas share a GPU")

    @model_validator(mode="after")
    def _autoscaling_arguments_go_together(self) -> Self:
        for name in ("min_replicas", "target_ongoing_requests"):
            if name in self.model_fields_set and self.max_replicas is None:
                raise ValueError(f"{name} is for autoscaling: it needs max_replicas")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least min_replicas ({self.min_replicas})")
        return self

    @property
    def cores(self) -> int:
        """Cores as a number of threads: rounded up."""
        return math.ceil(self.num_cpus)


def deployment_options(arguments: Replicas, settings: Settings) -> dict[str, Any]:
    """Return the arguments of serve.deployment."""
    return {
        "ray_actor_options": {"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        # Twice the capacity: a replica at capacity refuses by itself, with a problem and a good Retry-After, and still
        # answers probes and scrapes.
        "max_ongoing_requests": 2 * settings.queue_capacity,
        "max_queued_requests": settings.queue_capacity,
        "backpressure_config": {"status_code": 429, "retry_after_s": _RETRY_AFTER_S},
        "graceful_shutdown_wait_loop_s": _WAIT_LOOP_S,
        "graceful_shutdown_timeout_s": settings.drain_timeout_s + _END_MARGIN_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "max_constructor_retry_count": _MAX_STARTS,
        **_replicas(arguments, settings),
    }


def _replicas(arguments: Replicas, settings: Settings) -> dict[str, Any]:
    if arguments.max_replicas is None:
        return {"num_replicas": arguments.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.target_ongoing_requests or _max_batch_size(arguments, settings),
        }
    }


def _max_batch_size(arguments: Replicas, settings: Settings) -> int:
    """Return the maximum batch size; without the setting an estimate, since a replica's machine is unknown here.

    Fewer concurrent requests leave batches partly empty; more have to wait for the next batch.
    """
    return settings.max_batch_size or (32 if arguments.num_gpus else min(32, 4 * arguments.cores))


def deployment(arguments: Replicas) -> Any:
    """Return the application, for `serve run` and config files. Raises SettingsError."""
    # Not at the top: the options are needed without Ray as well.
    from ray import serve  # noqa: PLC0415

    settings = with_absolute_paths(load_settings(), Path.cwd())
    if settings.grpc_port is not None:
        raise SettingsError(["GRADLESS_GRPC_PORT: Ray Serve has gRPC servers of its own; unset it"])
    replica = serve.deployment(serve.ingress()(Replica), name="gradless", **deployment_options(arguments, settings))
    return replica.bind(settings, arguments.cores)


def with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    """Return `settings` with relative paths resolved against `folder`. Paths that begin with ~ stay: each machine
    resolves its own."""
    paths = {name: path for name in _PATHS if (path := getattr(settings, name)) is not None}
    absolute = {name: path if str(path).startswith("~") else folder / path for name, path in paths.items()}
    return settings.model_copy(update={**absolute, "models": tuple(_model(name, folder) for name in settings.models)})


def _model(stated: str, folder: Path) -> str:
    name, source = split_name(stated)
    absolute = _source(source, folder)
    return absolute if name is None else f"{name}={absolute}"


def _source(name: str, folder: Path) -> str:
    if name.startswith("."):
        return str(folder / name)
    # As models.loading.catalog distinguishes names from paths. It imports torch, so it is asked only about folders
    # that exist.
    if name.startswith("~") or not (folder / name / FILE_NAME).is_file():
        return name
    from models.loading.catalog import is_named  # noqa: PLC0415

    return name if is_named(name) else str(folder / name)
