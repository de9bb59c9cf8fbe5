"""Bind the listening socket, and log the address once the service accepts connections."""

from __future__ import annotations

import logging
import resource
import shlex
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from app.process.logs import logs_json
from app.settings import Settings
from models.interface.errors import StartError

_log = logging.getLogger(__name__)

# File descriptors to ask for, one per connection; many systems start a process with a soft limit of 1024.
_FILE_LIMIT = 65536

# A wildcard address, and the address that reaches it from this machine.
_REACHABLE_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def bind(settings: Settings) -> socket.socket:
    """Return a socket bound to the configured address, not listening yet. Raises StartError if it cannot be bound."""
    try:
        # Prefer IPv4 if the host name resolves to both.
        family, *_, address = min(
            socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM),
            key=lambda info: info[0] != socket.AF_INET,
        )
        with ExitStack() as on_error:
            listener = on_error.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            on_error.pop_all()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise StartError(
            f"cannot listen on GRADLESS_HOST={settings.host}, GRADLESS_PORT={settings.port}: {reason}"
        ) from error
    return listener


def allow_many_connections() -> None:
    """Raise the soft limit of file descriptors, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some kernels refuse an infinite soft limit.
    target = _FILE_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _FILE_LIMIT)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def log_listening(settings: Settings, listener: socket.socket) -> None:
    """Log the address that accepts connections; with console logs, also print how to try the service."""
    host, port = listener.getsockname()[:2]
    _log.info("serving", extra={"address": _url(host, port), "models": settings.models})
    if not logs_json(settings.log_format):
        print(_welcome(settings, _url(_REACHABLE_AT.get(host, host), port)), file=sys.stderr)  # noqa: T201


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _welcome(settings: Settings, address: str) -> str:
    # The path of the running command, which need not be on the user's PATH.
    gradless = shlex.quote(str(Path(sys.argv[0]).resolve()))
    with_picture = f"{gradless} sample - | curl -sS --data-binary @- {address}"
    last = f"curl -sSX POST '{address}/debug/grad-modes?batch_size=8'"
    lines = [
        "",
        f"gradless serves {', '.join(settings.models)} at {address}",
        "",
        f"  {address}/ in a browser is a page to try it on, {address}/docs its documentation",
        f"  {with_picture}/v1/classify",
        f"  {with_picture}/v1/features",
        f"  {last if settings.debug_endpoints else f'curl -sS {address}/metrics'}",
        "",
    ]
    return "\n".join(lines)
