"""A real Ray on this machine: two replicas behind Serve's proxy, started by `serve run` as documented."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml

from observe.processes import free_port

# Ray starts a dozen processes and each replica loads a model, which takes minutes on a busy machine.
START_TIMEOUT_S = 240
# Each look at the processes and each scrape of all replicas takes a tenth of a second of a core.
POLL_S = 1.0

_CONFIG = Path(__file__).parents[2] / "docker" / "ray" / "serve.yaml"
_BIN = Path(sys.executable).parent
_REPLICA = "ray::ServeReplica"

# Small enough for a test to reach capacity.
QUEUE_CAPACITY = 8

KEY = "a-key-with-every-right"


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with these settings, and no other variables of gradless or Ray."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GRADLESS_", "RAY_"))}
    ray = {
        "RAY_ADDRESS": "local",
        # Keeps other users of this machine out, and writes nothing into the home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
        # By default workers run at niceness 15 and Serve replaces a proxy that is not ready after three times 5 s. On
        # a busy machine the first starves the workers, and the proxy is still importing then.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "50",
    }
    return inherited | ray | {"PYTHONUNBUFFERED": "1"} | settings


class Service:
    """`serve run docker/ray/serve.yaml` with a Ray of its own."""

    def __init__(self, folder: Path, arguments: dict[str, Any], settings: dict[str, str]) -> None:
        self.queue_capacity = QUEUE_CAPACITY
        self.key = {"X-API-Key": KEY}
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._environment = environment(**settings)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [_BIN / "serve", "run", self._config(arguments)],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def deploy(self, arguments: dict[str, Any]) -> None:
        """Deploy again with other arguments, while the service runs."""
        [raylet] = [title for title in map(_title, self._processes()) if "/raylet " in title]
        address = raylet.split("--gcs-address=")[1].split()[0]
        deployed = subprocess.run(
            [_BIN / "serve", "run", "--non-blocking", self._config(arguments)],
            env=self._environment | {"RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        assert deployed.returncode == 0, deployed.stderr

    def _config(self, arguments: dict[str, Any]) -> Path:
        config = yaml.safe_load(_CONFIG.read_text())
        config["http_options"]["port"] = self._port
        [application] = config["applications"]
        application["args"] = arguments
        self._replica_count = arguments["replicas"]
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _processes(self) -> list[psutil.Process]:
        """All processes of the service; none if it has ended by itself."""
        if self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the service is not ready; Ray's log:\n{self._log.read_text()}")
            time.sleep(POLL_S)

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold the models."""
        return [process for process in self._processes() if _title(process).startswith(_REPLICA)]

    def end(self) -> None:
        """Send SIGTERM, then kill the processes that are left."""
        processes = self._processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()

    def ready(self) -> bool:
        """Return True if the metrics show each replica. A single one answers scrapes while the others load."""
        try:
            scraped = httpx2.get(f"{self.address}/metrics", headers=self.key, timeout=5)
        except httpx2.HTTPError:
            return False
        return scraped.text.count("gradless_build_info{") == self._replica_count


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two replicas of the default model with a small capacity and API keys. Tests leave it as they found it."""
    settings = {
        "GRADLESS_QUEUE_CAPACITY": str(QUEUE_CAPACITY),
        "GRADLESS_MAX_IMAGES_PER_REQUEST": str(QUEUE_CAPACITY),
        "GRADLESS_MAX_IMAGE_BYTES": "1000000",
        # Tests scrape repeatedly.
        "GRADLESS_METRICS_MAX_AGE_S": "0",
        "GRADLESS_API_KEYS": f"inference+debug+metrics+admin:{KEY}",
    }
    running = Service(tmp_path_factory.mktemp("serve"), {"replicas": 2}, settings)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.end()


@pytest.fixture
def gradless(warm_command: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command to its end."""

    def run(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        ended = warm_command.run([_BIN / "gradless", *arguments], environment(**settings), START_TIMEOUT_S)
        return subprocess.CompletedProcess(ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    return run


@pytest.fixture
def start_gradless() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the installed command. Processes that are left after the test, Ray's too, are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, **settings: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [_BIN / "gradless", *arguments], env=environment(**settings), stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
