"""The cluster: found or started, what it has room for, and what it says when something goes wrong on it."""

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

# Of an actor: decoders, of a whole core each, are to have the others, and forwards take what is left of all.
_ACTOR_CPUS = 0.5

_CONNECT_TIMEOUT_S = 10.0


def connect(address: str) -> None:
    """`local` starts a cluster of this machine alone, which nobody else can reach and which ends with the process;
    `auto` looks for one. Raises JobError."""
    _check(address)
    # Ray reports to its makers that it is used, unless it is told not to. What has other people's pictures does not.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What goes wrong comes as an exception.
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


def _check(address: str) -> None:
    """Ray itself would try for minutes."""
    if address in {"local", "auto"}:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        raise JobError(f"--ray {address}: it must be local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise JobError(f"--ray {address}: nobody answers there: {error}") from None


def gpus_for(device: str) -> int:
    """GPUs of the cluster that forwards are to run on."""
    wanted = device == "auto" or device.startswith("cuda")
    return int(ray.cluster_resources().get("GPU", 0)) if wanted else 0


def room_for_actors(gpus: int) -> tuple[int, float]:
    """How many actors there are to be, one a GPU or else one a machine, and which share of a core each is to be
    counted with."""
    cores = ray.cluster_resources().get("CPU", 0)
    machines = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    # With a single core nothing of it can be kept from the decoders: there would be none.
    return gpus or max(1, machines), _ACTOR_CPUS if cores > 1 else 0


def outcome(work: Callable[[], Any]) -> Any:
    """What `work`, which waits for others on the cluster, gives. Raises JobError for whatever they raise."""
    try:
        return work()
    except ray.exceptions.RayTaskError as error:
        # The cause is what was raised there, of its own kind; of a traceback there is enough in Ray's log.
        cause = getattr(error, "cause", None) or error
        raise JobError(" ".join(str(cause).strip().splitlines()[-1].split())) from None
    except ray.exceptions.RayError as error:
        raise JobError(" ".join(str(error).split())) from None
