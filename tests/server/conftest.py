"""Real server processes: the installed command, a free port, its log at hand when something fails."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.client import parse_headers
from io import BufferedReader
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observe.processes import free_port, start

GRADLESS = Path(sys.executable).parent / "gradless"
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 90

HOLD_FORWARDS = "from models.backends.pytorch import NullBackend; hold(NullBackend, 'run')"


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with these settings and no other GRADLESS_ ones, on a free port. Without a
    maximum age of metrics, because tests scrape repeatedly."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRADLESS_")}
    own = {"GRADLESS_PORT": "0", "PYTHONUNBUFFERED": "1", "GRADLESS_METRICS_MAX_AGE_S": "0"}
    return inherited | own | settings


class Server:
    """One `gradless serve`, or another command that serves, started by `start`. Leaving the context kills it, if it has
    not ended by then."""

    def __init__(
        self, start: Callable[..., Any], command: Sequence[Any] = (GRADLESS, "serve"), **settings: str
    ) -> None:
        self._welcomes = settings.get("GRADLESS_LOG_FORMAT") == "console"
        received, message = os.pipe()
        self._output = os.fdopen(received, encoding="utf-8")
        with os.fdopen(message, "wb") as output:
            self.process = start(list(command), environment(**settings), output)
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        try:
            serving = self.wait_for_line(r"\bserving\b", START_TIMEOUT_S)
            if self._welcomes:
                self.wait_for_line("curl .*(metrics|grad-modes)", START_TIMEOUT_S)
        except BaseException:
            self._end()
            raise
        found = re.search(r"\bhttp://([\d.]+):(\d+)", serving)
        assert found, serving
        self.host, self.port = found[1], int(found[2])
        self.address = f"http://{self.host}:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def wait_for_line(self, pattern: str, timeout_s: float = 90) -> str:
        """The next line of output in which `pattern` is found."""
        deadline = monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                pytest.fail(f"the server never logged {pattern!r}; its log:\n{''.join(self.log)}")
            if re.search(pattern, line):
                return line

    def exit_status(self) -> int:
        """Wait for the end of the process."""
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server did not stop; its log:\n{''.join(self.log)}")

    def end_of_output(self) -> None:
        """Wait until `log` has the whole output of the process, which must have ended."""
        self._reader.join()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def _read(self) -> None:
        for line in self._output:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def _end(self) -> None:
        with self.process:
            self.process.kill()
        self._reader.join()
        self._output.close()


def patched(warm_command: Any, workers: int | str, patch: str, **settings: str) -> Server:
    """A server with a patch: see patched_serve.py."""
    command = [Path(__file__).with_name("patched_serve.py"), workers, patch]
    settings = {"GRADLESS_MODELS": "null", "GRADLESS_HTTP_WORKERS": str(workers), **settings}
    return Server(warm_command.start, command, **settings)


class RawAnswer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="session")
def server(warm_command: Any) -> Iterator[Server]:
    """The default model, as in a terminal but else with default settings, shared: leave it as you found it."""
    with Server(warm_command.start, GRADLESS_LOG_FORMAT="console") as running:
        yield running


@pytest.fixture(scope="session")
def serving() -> type[Server]:
    """A server by the way it is started and its settings, for fixtures that last longer than a test."""
    return Server


@pytest.fixture
def start_server(warm_command: Any) -> Iterator[Callable[..., Server]]:
    """Start a server with arguments and settings of one's own, GRADLESS_ prefix included; it ends with the test."""
    with contextlib.ExitStack() as running:
        yield lambda *arguments, **settings: running.enter_context(
            Server(warm_command.start, (GRADLESS, "serve", *arguments), **settings)
        )


@pytest.fixture(scope="module")
def worker_server(warm_command: Any) -> Iterator[Server]:
    """The `null` model behind two workers: leave it at work, with as many."""
    with Server(warm_command.start, GRADLESS_HTTP_WORKERS="2", GRADLESS_MODELS="null") as running:
        yield running


@pytest.fixture
def start_command() -> Iterator[Callable[..., Server]]:
    """Start a server by a command of one's own, with settings; it ends with the test."""
    with contextlib.ExitStack() as running:
        yield lambda command, **settings: running.enter_context(Server(start, command, **settings))


@pytest.fixture
def start_session(warm_command: Any) -> Iterator[Callable[..., Server]]:
    """Start a server in a session of its own that ignores these signals; it ends with the test."""
    with contextlib.ExitStack() as running:

        def start_it(*ignored: signal.Signals, **settings: str) -> Server:
            start = functools.partial(warm_command.start, new_session=True, ignored=ignored)
            return running.enter_context(Server(start, **settings))

        yield start_it


@pytest.fixture
def start_patched(warm_command: Any) -> Iterator[Callable[..., Server]]:
    """Start patched_serve.py with that many HTTP workers, a patch and the `null` model; it ends with the test."""
    with contextlib.ExitStack() as running:
        yield lambda workers, patch="", **settings: running.enter_context(
            patched(warm_command, workers, patch, **settings)
        )


@pytest.fixture
def start_holding(start_patched: Callable[..., Server]) -> Callable[..., Server]:
    """Start the `null` model in one process; its forwards wait from SIGUSR1 to SIGUSR2. It ends with the test."""
    return functools.partial(start_patched, 0, HOLD_FORWARDS)


@pytest.fixture(scope="module", params=["0", "2"], ids=["in one process", "behind two workers"])
def holding_server(request: pytest.FixtureRequest, warm_command: Any) -> Iterator[Server]:
    """The `null` model, shared; its forwards wait from SIGUSR1 to SIGUSR2."""
    with patched(warm_command, request.param, HOLD_FORWARDS) as running:
        yield running


@pytest.fixture(scope="session")
def gradless_path() -> Path:
    return GRADLESS


@pytest.fixture
def unused_port() -> int:
    """A TCP port of 127.0.0.1 without a listener."""
    return free_port()


@pytest.fixture
def server_environment() -> Callable[..., dict[str, str]]:
    return environment


@pytest.fixture(scope="session")
def gradless(warm_command: Any) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the installed command, or a script, to its end."""

    def run(*arguments: Any, script: Path = GRADLESS, **settings: str) -> subprocess.CompletedProcess[bytes]:
        ended: subprocess.CompletedProcess[bytes] = warm_command.run([script, *arguments], environment(**settings))
        return ended

    return run


@pytest.fixture
def read_answer() -> Callable[[BufferedReader], RawAnswer]:
    """Read the next HTTP answer of a connection from its file; pipelined answers come one by one."""

    def read(file: BufferedReader) -> RawAnswer:
        status_line = file.readline()
        assert status_line.startswith(b"HTTP/1.1 "), status_line
        headers = {name.lower(): value for name, value in parse_headers(file).items()}
        return RawAnswer(int(status_line.split()[1]), headers, file.read(int(headers.get("content-length", 0))))

    return read


@pytest.fixture
def metric_sum() -> Callable[..., float]:
    """The sum of an exposition's samples of that name which carry these labels."""

    def total(exposition: str, sample_name: str, **labels: str) -> float:
        # Parsing all of it takes a tenth of a second.
        lines = "\n".join(line for line in exposition.splitlines() if line.startswith(sample_name))
        return sum(
            sample.value
            for family in text_string_to_metric_families(lines)
            for sample in family.samples
            if sample.name == sample_name and labels.items() <= sample.labels.items()
        )

    return total
