"""Context managers that run a real gradless and a real Prometheus on free ports."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from observe import ROOT
from observe.prometheus import Prometheus

# The first start converts the model.
_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 30

# Below those that Linux gives to processes that ask for any port: before a server listens, one could take its port.
_PORTS = range(20_000, 32_000)


class NotStartedError(Exception):
    """A process ended, or did not log its address in time. The message has the end of its log."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        end = log.read_text(errors="replace")[-2000:]
        super().__init__(f"{' '.join(command)} did not start; the end of {log}:\n{end}")


# A process, or a test's stand-in with its methods.
Process = subprocess.Popen[bytes]


class Running(NamedTuple):
    """A server process, its address and its log."""

    address: str
    process: Process
    log: Path


def start(command: Sequence[str], environ: Mapping[str, str], output: IO[bytes]) -> Process:
    """Start a process whose stdout and stderr go to `output`."""
    return subprocess.Popen(  # noqa: S603 - the arguments come from this module and tests
        command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )


# The type of `start`. Tests pass one that forks a process in which everything is imported.
Start = Callable[[Sequence[str], Mapping[str, str], IO[bytes]], Process]


def require_prometheus() -> None:
    """Raise RuntimeError with the command that installs Prometheus, if it is missing."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is missing: apt-get install prometheus")


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1, for a server that must restart on the same port."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


@contextmanager
def gradless(
    folder: Path, settings: Mapping[str, str], command: Sequence[str] = (), start: Start = start
) -> Iterator[str]:
    """Run a server with these GRADLESS_* variables and no others, log to `folder`, and yield the address.

    `command` replaces `gradless serve`. Raises NotStartedError.
    """
    with gradless_process(folder, settings, command, start) as running:
        yield running.address


@contextmanager
def gradless_process(
    folder: Path, settings: Mapping[str, str], command: Sequence[str] = (), start: Start = start
) -> Iterator[Running]:
    """As `gradless`, but yield the process, its address and its log."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRADLESS_")}
    own = command or [str(Path(sys.executable).parent / "gradless"), "serve"]
    environ = {**inherited, "GRADLESS_PORT": "0", **settings}
    with _running(own, folder / "gradless.log", _serving, environ, start) as running:
        yield running


@contextmanager
def prometheus(folder: Path, configuration: Path) -> Iterator[Prometheus]:
    """Run Prometheus with data and log in `folder`, and yield a client. Raises NotStartedError."""
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
    """Send requests of every kind to the server at `address` until the block ends."""
    command = [sys.executable, "-m", "observe.traffic", address]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) as process:  # noqa: S603 - composed above
        try:
            yield
        finally:
            _end(process)


@contextmanager
def _running(
    command: Sequence[str], log: Path, address_in: Callable[[str], str | None], environ: Mapping[str, str], start: Start
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
    fields = _fields(line)
    return fields["address"] if fields.get("event") == "serving" else None


def _listening(line: str) -> str | None:
    fields = _fields(line)
    return f"http://{fields['address']}" if fields.get("msg") == "Listening on" else None


def _fields(line: str) -> dict[str, str]:
    """Return the fields of a JSON log line; {} for any other line."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
