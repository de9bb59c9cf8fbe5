"""Bind the listening socket, accept connections, and stop without resetting a connection that has been made."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import platform
import select
import shlex
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from app.http.hosts import host_and_port
from app.process.logs import logs_json
from app.settings import Settings
from models.interface.errors import StartError
from models.interface.extras import install_command
from models.interface.results import ModelCard

_log = logging.getLogger(__name__)

_BACKLOG = 2048
# Maximum number of connections accepted in one event loop callback.
_ACCEPT_BATCH = 64

# Delay before the next attempt, without file descriptors and after `handle` has refused a connection.
NO_FILES_S = 0.5
_RETRY_S = 0.005

# Minimum time between two log lines about missing resources.
_LOG_INTERVAL_S = 60.0

_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Names of the processors for which `make run` installs OpenVINO. docs/performance.md has the measurement.
_X86 = frozenset({"x86_64", "amd64"})

# Time for TCP handshakes in progress to complete before the listener closes: a slow round trip.
_HANDSHAKES_S = 0.3

# Linux: drop each segment with the SYN flag, keep all others. In classic BPF (linux/filter.h) on a TCP socket the
# packet begins with the TCP header, whose byte 13 holds the flags.
_SO_ATTACH_FILTER = 26
_NO_NEW_HANDSHAKES = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))

_GRPC_PORT = "GRADLESS_GRPC_PORT"

# A wildcard address, and the address that reaches it from this machine.
_REACHABLE_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class Acceptor:
    """Owns `listener`, and passes each accepted connection to `handle`.

    If `handle` returns False, this connection and the next ones wait. `out_of_files` logs missing file descriptors.
    """

    def __init__(self, listener: socket.socket, handle: Callable[[socket.socket], bool]) -> None:
        self._listener = listener
        self._handle = handle
        # Accepted connections that `handle` has not taken yet.
        self._waiting: deque[socket.socket] = deque()
        self._open = False
        self.out_of_files = RateLimitedWarning()

    def open(self) -> None:
        """Listen, and accept connections."""
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._open = True
        self._resume()

    async def close(self, until: float, keep_waiting: Callable[[], bool] = lambda: True) -> None:
        """Stop listening after all connections that have been made are accepted.

        The kernel ignores new handshakes meanwhile. `until` is the deadline (`perf_counter`); waiting also ends when
        `keep_waiting` returns False.
        """
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._listener)
            ignore_new_handshakes(self._listener)
            handshakes_end = perf_counter() + _HANDSHAKES_S
            while keep_waiting() and perf_counter() < until:
                if not (self._waiting or self._queued() or perf_counter() < handshakes_end):
                    break
                self._accept()
                await asyncio.sleep(_RETRY_S)
        self._listener.close()
        for connection in self._waiting:
            connection.close()
        self._waiting.clear()

    def requeue(self, connections: Sequence[socket.socket]) -> None:
        """Pass connections to `handle` again, before all others. After `close`, close them."""
        if self._listener.fileno() < 0:
            for connection in connections:
                connection.close()
            return
        self._waiting.extendleft(reversed(connections))
        if self._open:
            self._accept()

    def _resume(self) -> None:
        if self._open:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            if self._waiting:
                self._accept()

    def _queued(self) -> bool:
        """Return whether a connection waits in the kernel's queue."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return bool(poll.poll(0))

    def _accept(self) -> None:
        """Accept waiting connections, up to a maximum number."""
        for _ in range(_ACCEPT_BATCH):
            if not self._waiting:
                try:
                    connection, _ = self._listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in _NO_RESOURCES:
                        self.out_of_files.log(
                            "no connection can be accepted: %s; new ones wait. Raise the limit (ulimit -n)",
                            error.strerror,
                        )
                        self._pause(NO_FILES_S)
                        return
                    # The client has disconnected before the accept.
                    continue
                self._waiting.append(connection)
            if not self._handle(self._waiting[0]):
                # New connections wait in the kernel's queue meanwhile.
                self._pause(_RETRY_S)
                return
            self._waiting.popleft()
        if self._waiting:
            # Requeued connections remain; the listener does not become readable for them.
            self._pause(0)

    def _pause(self, seconds: float) -> None:
        if self._open:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(seconds, self._resume)


class RateLimitedWarning:
    """Logs a repeated warning at most once a minute, with the number of warnings suppressed since."""

    def __init__(self) -> None:
        self._logged_at = -_LOG_INTERVAL_S
        self._suppressed = 0

    def log(self, message: str, *arguments: object) -> None:
        """Log the warning, unless one was logged in the last minute."""
        now = perf_counter()
        if now - self._logged_at < _LOG_INTERVAL_S:
            self._suppressed += 1
            return
        repeated = f" ({self._suppressed} times more since the last line)" if self._suppressed else ""
        self._logged_at, self._suppressed = now, 0
        _log.warning(message + repeated, *arguments)


def ignore_new_handshakes(listener: socket.socket) -> None:
    """Make the kernel ignore new TCP handshakes, while those in progress complete. Only Linux supports this.

    Clients retry after a second, and are refused once the listener is closed.
    """
    if not sys.platform.startswith("linux"):
        return
    instructions = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *instruction) for instruction in _NO_NEW_HANDSHAKES)
    )
    program = struct.pack("@HP", len(_NO_NEW_HANDSHAKES), ctypes.addressof(instructions))
    # Sandboxed kernels may lack it; then a connection made in the last moment may be reset.
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def bind(settings: Settings) -> socket.socket:
    """Return a socket bound to the configured address, not listening yet. Raises StartError if it cannot be bound."""
    return _bound(settings.host, settings.port, "GRADLESS_PORT")


def reserve_grpc_port(settings: Settings) -> socket.socket | None:
    """Return a socket bound to the configured port of gRPC, which several processes may then share while it is open;
    None without gRPC. It does not listen, so it gets no connections.

    Raises StartError if another process listens there.
    """
    if settings.grpc_port is None:
        return None
    # Alone first: processes that share a port do not learn of each other.
    with _bound(settings.host, settings.grpc_port, _GRPC_PORT) as alone:
        port = alone.getsockname()[1]
    return _bound(settings.host, port, _GRPC_PORT, shared=True)


def _bound(host: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    try:
        # Prefer IPv4 if the host name resolves to both.
        family, *_, address = min(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), key=lambda info: info[0] != socket.AF_INET
        )
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise StartError(f"cannot listen on GRADLESS_HOST={host}, {setting}={port}: {reason}") from error
    return listener


def log_listening(settings: Settings, listener: socket.socket, cards: Iterable[ModelCard]) -> None:
    """Log the address that accepts connections, and what would serve these models faster; with console logs, also print
    how to try the service."""
    host, port = listener.getsockname()[:2]
    facts = {"address": f"http://{host_and_port(host, port)}", "models": settings.models}
    if settings.backend == "auto" and any(_lacks_openvino(card) for card in cards):
        facts["advice"] = f"OpenVINO is about twice as fast on this processor: {install_command('openvino')}"
    _log.info("serving", extra=facts)
    if not logs_json(settings.log_format):
        reachable_at = f"http://{host_and_port(_REACHABLE_AT.get(host, host), port)}"
        print(_welcome(settings, reachable_at), file=sys.stderr)  # noqa: T201


def _lacks_openvino(card: ModelCard) -> bool:
    """Return whether `auto` would have chosen OpenVINO, if it were installed, on a processor that gains by it."""
    return card.backend == "eager" and card.device == "cpu" and platform.machine().lower() in _X86


def _welcome(settings: Settings, address: str) -> str:
    # The path of the running command, which need not be on the user's PATH.
    gradless = shlex.quote(str(Path(sys.argv[0]).resolve()))
    with_picture = f"{gradless} sample - | curl -sS --data-binary @- {address}"
    last = f"curl -sSX POST '{address}/debug/grad-modes?batch_size=8'"
    return f"""
gradless serves {", ".join(settings.models)} at {address}

  {address}/ in a browser is a page to try it on, {address}/docs its documentation
  {with_picture}/v1/classify
  {with_picture}/v1/features
  {last if settings.debug_endpoints else f"curl -sS {address}/metrics"}
"""
