"""Connect to a Ray cluster, read its resources, and translate its errors."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import ray
import ray.data

from models.hardware.cores import available_cores
from models.interface.errors import JobError

# CPU reservation of an actor. Decoding tasks reserve a core each; forwards use the time that those leave.
_ACTOR_CPUS = 0.5

_CONNECT_TIMEOUT_S = 10.0


def connect(address: str) -> None:
    """Connect to `address`: `local` starts a cluster for this process alone, which ends with it; `auto` finds a running
    one. Raises JobError."""
    _check_address(address)
    # Ray sends usage statistics by default. A job over private images does not.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Errors arrive as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own = {"num_cpus": available_cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == "local" else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise JobError(f"--ray {address}: {error}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check_address(address: str) -> None:
    """Check at once that the address answers, where Ray would retry for minutes. Raises JobError."""
    if address in {"local", "auto"}:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        raise JobError(f"--ray {address}: it must be local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise JobError(f"--ray {address} cannot be reached: {error}") from None


def gpus_for(device: str) -> int:
    """Return the number of GPUs of the cluster to use for forwards."""
    uses_gpus = device == "auto" or device.startswith("cuda")
    return int(ray.cluster_resources().get("GPU", 0)) if uses_gpus else 0


def actor_resources(gpus: int) -> tuple[int, float]:
    """Return (actors, CPU reservation of each): one actor per GPU, or per machine without GPUs."""
    cores = ray.cluster_resources().get("CPU", 0)
    machines = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    # On a single core a reservation would leave none for decoding.
    return gpus or max(1, machines), _ACTOR_CPUS if cores > 1 else 0


def result_of(work: Callable[[], Any]) -> Any:
    """Return the result of `work`, which waits for the cluster. Raises JobError for any error of the cluster."""
    try:
        return work()
    except ray.exceptions.RayTaskError as error:
        # The cause is the original exception. Ray's log has its traceback.
        cause = getattr(error, "cause", None) or error
        raise JobError(" ".join(str(cause).strip().splitlines()[-1].split())) from None
    except ray.exceptions.RayError as error:
        raise JobError(" ".join(str(error).split())) from None
