"""A real gradless and a real Prometheus, on free ports, until the block ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from observe.places import ROOT
from observe.prometheus import Prometheus

# The first start converts the model.
_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 30


class NotStartedError(Exception):
    """A process ended, or said nothing of an address in time. Carries the end of its log."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        end = log.read_text(errors="replace")[-2000:]
        super().__init__(f"{' '.join(command)} does not serve; the end of {log}:\n{end}")


class Process(AbstractContextManager["Process"], Protocol):
    """What of subprocess.Popen is used here."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int, /) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Running(NamedTuple):
    """A process that serves, where, and its log."""

    address: str
    process: Process
    log: Path


def start(command: Sequence[str], environ: Mapping[str, str], output: IO[bytes]) -> Process:
    """Start it with its outputs in `output`."""
    return subprocess.Popen(  # noqa: S603 - composed by the callers
        command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )


# As `start`: the tests have one that is quicker.
Start = Callable[[Sequence[str], Mapping[str, str], IO[bytes]], Process]


def require_prometheus() -> None:
    """Raises RuntimeError, saying how to get it, when it is not there."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is missing: apt-get install prometheus")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has now, for a server that is to be found there again."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def gradless(
    folder: Path, settings: Mapping[str, str], command: Sequence[str] = (), start: Start = start
) -> Iterator[str]:
    """The address of a server with these GRADLESS_* variables and no others; its log is in `folder`. `command`
    stands in for `gradless serve`. Raises NotStartedError."""
    with gradless_process(folder, settings, command, start) as running:
        yield running.address


@contextmanager
def gradless_process(
    folder: Path, settings: Mapping[str, str], command: Sequence[str] = (), start: Start = start
) -> Iterator[Running]:
    """As `gradless`, for who has to look at the process, or to end it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRADLESS_")}
    own = command or [str(Path(sys.executable).parent / "gradless"), "serve"]
    environ = {**inherited, "GRADLESS_PORT": "0", **settings}
    with _running(own, folder / "gradless.log", _serving, environ, start) as running:
        yield running


@contextmanager
def prometheus(folder: Path, configuration: Path) -> Iterator[Prometheus]:
    """Prometheus with its data and log in `folder`. Raises NotStartedError."""
    command = [
        "prometheus",
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--enable-feature=exemplar-storage",
        "--log.format=json",
    ]
    with _running(command, folder / "prometheus.log", _listening, os.environ, start) as running:
        yield Prometheus(running.address)


@contextmanager
def sending(address: str) -> Iterator[None]:
    """Requests of every kind to the server at `address`."""
    command = [sys.executable, "-m", "observe.traffic", address]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) as process:  # noqa: S603 - composed above
        try:
            yield
        finally:
            _end(process)


@contextmanager
def _running(
    command: Sequence[str],
    log: Path,
    address_in: Callable[[str], str | None],
    environ: Mapping[str, str],
    start: Start,
) -> Iterator[Running]:
    with log.open("wb") as output, start(command, environ, output) as process:
        try:
            yield Running(_address(process, command, log, address_in), process, log)
        finally:
            _end(process)


def _address(process: Process, command: Sequence[str], log: Path, address_in: Callable[[str], str | None]) -> str:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text(errors="replace").splitlines():
            if address := address_in(line):
                return address
        time.sleep(0.1)
    raise NotStartedError(command, log)


def _end(process: Process) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _serving(line: str) -> str | None:
    said = _said(line)
    return said["address"] if said.get("event") == "serving" else None


def _listening(line: str) -> str | None:
    said = _said(line)
    return f"http://{said['address']}" if said.get("msg") == "Listening on" else None


def _said(line: str) -> dict[str, str]:
    """What a line of JSON says; nothing for any other line."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
