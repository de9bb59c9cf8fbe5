"""A real Ray on this machine: two replicas behind Serve's proxy, started as the documentation says."""

from __future__ import annotations

import os
import signal
import socket
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

# Ray starts a dozen processes, and each replica loads a model: minutes on a machine that does other things too.
START_TIMEOUT_S = 240

_CONFIG = Path(__file__).parents[2] / "docker" / "ray" / "serve.yaml"
_BIN = Path(sys.executable).parent
_REPLICA = "ray::ServeReplica"

# Few enough for a test to fill them.
PLACES = 8

KEY = "may-ask-for-everything"


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, with these settings and no others of gradless's or Ray's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GRADLESS_", "RAY_"))}
    ray = {
        "RAY_ADDRESS": "local",
        # Nobody else on this machine gets in, and nothing is written into its home.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its workers would get what fifteen steps of nice leave them: hardly anything, while other tests keep all cores
        # busy. And three times the default 5 s, and Serve would give its proxy up while that still imports.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "50",
    }
    return inherited | ray | {"PYTHONUNBUFFERED": "1"} | settings


class Service:
    """`serve run` of the config that the project has, on a Ray of its own. Leaving the context ends both."""

    def __init__(self, folder: Path, arguments: dict[str, Any], settings: dict[str, str]) -> None:
        self.places = PLACES
        self.key = {"X-API-Key": KEY}
        self._port = _unused_port()
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
        """The same with other arguments, while it runs."""
        [raylet] = [title for title in map(_title, self._family()) if "/raylet " in title]
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
        self._wanted = arguments["replicas"]
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _family(self) -> list[psutil.Process]:
        """Nobody, where it has ended by itself."""
        if self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the service is not ready; Ray says:\n{self._log.read_text()}")
            time.sleep(0.2)

    def replicas(self) -> list[psutil.Process]:
        """The processes that have the models."""
        return [process for process in self._family() if _title(process).startswith(_REPLICA)]

    def end(self) -> None:
        """Politely; what is still there then is killed."""
        everybody = self._family()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _, alive = psutil.wait_procs(everybody, timeout=10)
        for process in alive:
            process.kill()

    def _ready(self) -> bool:
        """Whether each replica tells of itself; the first answers for the others, while they load."""
        try:
            scraped = httpx2.get(f"{self.address}/metrics", headers=self.key, timeout=5)
        except httpx2.HTTPError:
            return False
        return scraped.text.count("gradless_build_info{") == self._wanted


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The default model in two replicas of few places, for callers with keys; leave it as you found it."""
    settings = {
        "GRADLESS_QUEUE_CAPACITY": str(PLACES),
        "GRADLESS_MAX_IMAGES_PER_REQUEST": str(PLACES),
        "GRADLESS_MAX_IMAGE_BYTES": "1000000",
        "GRADLESS_API_KEYS": f"inference+debug+metrics+admin:{KEY}",
    }
    running = Service(tmp_path_factory.mktemp("serve"), {"replicas": 2}, settings)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.end()


@pytest.fixture
def gradless() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command to its end."""

    def run(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_BIN / "gradless", *arguments],
            env=environment(**settings),
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )

    return run


@pytest.fixture
def start_gradless() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begin to run the installed command; what is still there after the test, Ray's processes included, is killed."""
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


def _unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
