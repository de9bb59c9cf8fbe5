"""Start a server's processes, wait for them, read their CPU time and end all of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import psutil

from benchmarks.bench import ROOT, Bench
from benchmarks.servers import ServerSpec
from observe.processes import free_port

# compiled: one graph for each batch size, each some 20 s the first time
_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 5.0

# Interval of readiness checks.
_PAUSE_S = 0.1
_SHORT_PAUSE_S = 0.02

# Ray's own processes take up to 0.2 cores when idle; a busy server takes at least one.
_IDLE_CORES = 0.3
_IDLE_FOR_S = 0.25
_LONGEST_BACKLOG_S = 30.0


class ServerFailedError(Exception):
    """A server ended, or did not answer in time. The message has the end of its log."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(f"{name} does not answer; the end of {log}:\n{log.read_text(errors='replace')[-1500:]}")


class RunningServer:
    """A server at `url`. `start_seconds` is from its start to its first answer; `headers` are sent with each
    request."""

    def __init__(
        self, process: subprocess.Popen[bytes], url: str, start_seconds: float, headers: Sequence[str] = ()
    ) -> None:
        self.url = url
        self.headers = headers
        self.start_seconds = start_seconds
        self._root = psutil.Process(process.pid)

    def at(self, path: str, headers: Sequence[str] = ()) -> RunningServer:
        """Return the same server with another path and other headers for its requests."""
        other = copy(self)
        other.url, other.headers = urljoin(self.url, path), headers
        return other

    def cpu_seconds(self) -> float:
        """Return the CPU time, user and system, of all running processes."""
        return sum(_cpu_seconds(process) for process in self.processes())

    def wait_until_idle(self) -> None:
        """Wait until the server is idle: wrk disconnects with a request on each connection, which most servers process.

        Raises RuntimeError if it stays busy.
        """
        deadline = time.perf_counter() + _LONGEST_BACKLOG_S
        while time.perf_counter() < deadline:
            before, since = self.cpu_seconds(), time.perf_counter()
            time.sleep(_IDLE_FOR_S)
            if self.cpu_seconds() - before < _IDLE_CORES * (time.perf_counter() - since):
                return
        raise RuntimeError(f"{self.url} is busy {_LONGEST_BACKLOG_S:.0f} s after its last client has disconnected")

    def processes(self) -> list[psutil.Process]:
        """Return all running processes."""
        return tree(self._root)


def resident_bytes(servers: Sequence[RunningServer]) -> int:
    """Return the memory of all processes, with shared pages counted once. PSS would depend on other users of PyTorch's
    libraries."""
    private = 0
    shared: dict[str, int] = {}
    for process in (process for server in servers for process in server.processes()):
        try:
            mappings = process.memory_maps()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        for mapping in mappings:
            private += mapping.private_clean + mapping.private_dirty
            here = mapping.shared_clean + mapping.shared_dirty
            shared[mapping.path] = max(here, shared.get(mapping.path, 0))
    return private + sum(shared.values())


@contextmanager
def running(spec: ServerSpec, model: str, bench: Bench) -> Iterator[RunningServer]:
    """Run `spec` with `model` on a free port until the block ends; it has answered one picture.

    Raises ServerFailedError.
    """
    body = bench.usual[0].read_bytes()
    started_at = time.perf_counter()
    with _started(spec, model, bench) as (process, address, log):
        url = f"{address}{spec.path}"
        _wait_until(lambda: post(url, body, headers=spec.headers), spec.name, process, log, pause_s=_PAUSE_S)
        yield RunningServer(process, url, time.perf_counter() - started_at, spec.headers)


def seconds_to_ready(spec: ServerSpec, model: str, bench: Bench) -> float:
    """Return the seconds from the start of gradless to the first 200 of /readyz. Raises ServerFailedError."""
    started_at = time.perf_counter()
    with _started(spec, model, bench) as (process, address, log):
        _wait_until(lambda: get(f"{address}/readyz"), spec.name, process, log, pause_s=_SHORT_PAUSE_S)
        return time.perf_counter() - started_at


@contextmanager
def _started(spec: ServerSpec, model: str, bench: Bench) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Yield the process, its address and its log; end the process and its children after the block."""
    port = free_port()
    log = bench.log_folder / f"{spec.name} {model}.log".replace(" ", "-")
    log.parent.mkdir(parents=True, exist_ok=True)
    further = spec.variables(model, port, bench.usual_folder)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore", **further}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - one of servers.SERVERS
            spec.arguments(bench.project_python, port),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A process group of its own, so that Ctrl-C does not end it during a measurement.
            start_new_session=True,
        )
        try:
            yield process, f"http://127.0.0.1:{port}", log
        finally:
            _end(process)


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return the process and its descendants, or [] if it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def post(url: str, body: bytes, timeout_s: float = 60.0, headers: Sequence[str] = ()) -> bytes:
    """Send one JPEG with `headers`, each "Name: value". Raises URLError or OSError unless the answer is a success."""
    fields = {"Content-Type": "image/jpeg", **dict(line.split(": ", 1) for line in headers)}
    request = Request(url, data=body, headers=fields)  # noqa: S310 - http of our own making
    with urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


def get(url: str, timeout_s: float = 60.0) -> bytes:
    """Send a GET request. Raises URLError or OSError unless the answer is a success."""
    with urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - http of our own making
        content: bytes = answer.read()
        return content


def _wait_until(
    answers: Callable[[], object], name: str, process: subprocess.Popen[bytes], log: Path, *, pause_s: float
) -> None:
    deadline = time.perf_counter() + _START_TIMEOUT_S
    while process.poll() is None and time.perf_counter() < deadline:
        try:
            answers()
        except (URLError, OSError):
            time.sleep(pause_s)
        else:
            return
    raise ServerFailedError(name, log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate the first process, then kill the others: some servers' children have process groups of their own."""
    family = tree(psutil.Process(process.pid)) if process.poll() is None else []
    process.terminate()
    _, left = psutil.wait_procs(family, timeout=_STOP_TIMEOUT_S)
    for survivor in left:
        try:
            survivor.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=_STOP_TIMEOUT_S)
    process.wait()


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    # Includes ended children, for servers that start a process for each request.
    return float(times.user + times.system + times.children_user + times.children_system)
