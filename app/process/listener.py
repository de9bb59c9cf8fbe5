"""Where the service listens, and what it says of that once it does."""

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

_MANY_FILES = 65536

# Who listens on every address is reached at this one, from here.
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def bind(settings: Settings) -> socket.socket:
    """The address is taken, and nobody is listened to yet. Raises StartError where it cannot be had."""
    try:
        # IPv4 where a name stands for both.
        family, *_, place = min(
            socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM),
            key=lambda found: found[0] != socket.AF_INET,
        )
        with ExitStack() as refused:
            listener = refused.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            refused.pop_all()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise StartError(
            f"cannot listen on GRADLESS_HOST={settings.host}, GRADLESS_PORT={settings.port}: {reason}"
        ) from error
    return listener


def allow_many_connections() -> None:
    """Each takes a file descriptor, and many systems start a process with 1024 of them although it may have more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where there is no least upper bound, some kernels refuse to set it to infinity.
    wanted = _MANY_FILES if most == resource.RLIM_INFINITY else min(most, _MANY_FILES)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def log_listening(settings: Settings, listener: socket.socket) -> None:
    """That callers are answered there: a line of log, and for people how to try it."""
    host, port = listener.getsockname()[:2]
    _log.info("serving", extra={"address": _url(host, port), "models": settings.models})
    if not logs_json(settings.log_format):
        print(_welcome(settings, _url(_REACHED_AT.get(host, host), port)), file=sys.stderr)  # noqa: T201


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _welcome(settings: Settings, address: str) -> str:
    # The command that is running: not everybody's shell finds it by its bare name.
    gradless = shlex.quote(str(Path(sys.argv[0]).resolve()))
    picture = f"{gradless} sample - | curl -sS --data-binary @- {address}"
    last = f"curl -sSX POST '{address}/debug/grad-modes?batch_size=8'"
    lines = [
        "",
        f"gradless serves {', '.join(settings.models)} at {address}",
        "",
        f"  {address}/ in a browser is a page to try it on, {address}/docs its documentation",
        f"  {picture}/v1/classify",
        f"  {picture}/v1/features",
        f"  {last if settings.debug_endpoints else f'curl -sS {address}/metrics'}",
        "",
    ]
    return "\n".join(lines)
