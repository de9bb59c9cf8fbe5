"""One server's processes: started, waited for, their CPU time read, and ended to the last one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

from benchmarks.servers import ServerSpec

ROOT = Path(__file__).resolve().parent.parent

# compiled: one graph for each batch size, each some 20 s the first time
_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 5.0


class ServerFailedError(Exception):
    """It ended, or did not answer in time. Carries the end of its log."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(f"{name} does not answer; the end of {log}:\n{log.read_text(errors='replace')[-1500:]}")


class RunningServer:
    """A server that answers at `url`. `start_seconds` is from its start to its first answer."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, start_seconds: float) -> None:
        self.url = url
        self.start_seconds = start_seconds
        self._root = psutil.Process(process.pid)

    def cpu_seconds(self) -> float:
        """CPU time, user and system, of all its processes that live."""
        return sum(_cpu_seconds(process) for process in tree(self._root))

    def resident_bytes(self) -> int:
        """Memory of all its processes; what they share counts once, in proportion (Linux's PSS)."""
        return sum(_resident_bytes(process) for process in tree(self._root))


@contextmanager
def running(
    spec: ServerSpec, model: str, *, body: bytes, project_python: Path, log_folder: Path
) -> Iterator[RunningServer]:
    """`spec` serving `model` on a free port until the block ends. `body` is a JPEG to see it answer with.

    Raises ServerFailedError.
    """
    port = free_port()
    log = log_folder / f"{spec.name} {model}.log".replace(" ", "-")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **spec.variables(model, port)}
    with log.open("wb") as output:
        started_at = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - one of servers.SERVERS
            spec.arguments(project_python, port),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own, so that Ctrl-C here does not end it half way through a measurement.
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}{spec.path}"
            _wait_until_it_answers(spec.name, process, url, body, log)
            yield RunningServer(process, url, time.perf_counter() - started_at)
        finally:
            _end(process)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def tree(root: psutil.Process) -> list[psutil.Process]:
    """The process and all below it; empty when it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def post(url: str, body: bytes, timeout_s: float = 60.0) -> bytes:
    """Send one JPEG. Raises URLError or OSError unless the answer is a success."""
    request = Request(url, data=body, headers={"Content-Type": "image/jpeg"})  # noqa: S310 - http of our own making
    with urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


def _wait_until_it_answers(name: str, process: subprocess.Popen[bytes], url: str, body: bytes, log: Path) -> None:
    deadline = time.perf_counter() + _START_TIMEOUT_S
    while process.poll() is None and time.perf_counter() < deadline:
        try:
            post(url, body)
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise ServerFailedError(name, log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the first process, then kill what is left: some servers' children have process groups of their own."""
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
    # Those of ended children too: a server that starts a process for each request must not look cheap.
    return float(times.user + times.system + times.children_user + times.children_system)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
