"""The process: uvicorn, told to drain on SIGTERM, to say in one line why it cannot start, and where it serves."""

from __future__ import annotations

import gc
import logging
import os
import resource
import shlex
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from app.dependencies import Parts
from app.logs import configure_logging, logs_json
from app.main import create_app
from app.settings import Settings
from app.shedding_connection import shedding_connection
from app.start_failures import PlainStartFailures

_log = logging.getLogger(__name__)

# Beyond it a caller's keep-alive connection is closed; load balancers commonly keep theirs for 60 s.
_KEEP_ALIVE_S = 75

_MANY_FILES = 65536

# After so long a thread that runs Python lets others run theirs. The event loop is such a thread, and one that decodes
# comes back to Python a few times an image: at Python's own 5 ms it waits for the loop each time.
_SWITCH_INTERVAL_S = 0.0001

# When the garbage collector comes: after so many objects more, and each older generation after so many collections of
# the younger. Requests leave nothing to it, and a full house is 60,000 objects: to look through them took 0.1 to 0.3 s
# under overload, in which nobody was answered, every 6 s at Python's own 700, 10, 10.
_COLLECT_AFTER = (5_000, 10, 100)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted. Raises SystemExit when it cannot start."""
    configure_logging(settings.log_level, settings.log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(*_COLLECT_AFTER)
    app = create_app(settings)
    parts: Parts = app.state.parts
    # Before the models are loaded, so that a wrong address is known at once; open to callers only afterwards.
    listener = _bind(settings)
    _allow_many_connections()
    config = uvicorn.Config(
        PlainStartFailures(app, parts),
        # Where a library for WebSockets happens to be installed, a request to upgrade would leave the bounds of http.
        ws="none",
        http=shedding_connection(settings.read_timeout_s, parts.metrics.refused_by_connection, app.state.shedding),
        log_config=None,
        access_log=False,
        server_header=False,
        # Nobody's X-Forwarded-For is believed, or looked for.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # uvicorn takes whole seconds; rounded up, so that an accepted request has its whole time
        timeout_graceful_shutdown=max(1, int(-(-settings.drain_timeout_s // 1))),
    )
    server = _Server(config, parts)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)
    if parts.failure is not None:
        _log.critical("ended: %s", parts.failure)
        logging.shutdown()
        # Not sys.exit: Python would wait for the very thread that hangs.
        os._exit(1)


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        address = f"GRADLESS_HOST={settings.host}, GRADLESS_PORT={settings.port}"
        sys.exit(f"gradless: cannot listen there: {error.strerror} ({address})")
    return listener


def _allow_many_connections() -> None:
    """Each takes a file descriptor, and many systems start a process with 1024 of them although it may have more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where there is no least upper bound, some kernels refuse to set it to infinity.
    wanted = _MANY_FILES if most == resource.RLIM_INFINITY else min(most, _MANY_FILES)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts = parts

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            settings, address = self._parts.settings, f"http://{_reachable(host)}:{port}"
            _log.info("serving", extra={"address": address, "models": settings.models})
            if not logs_json(settings.log_format):
                print(_welcome(settings, address), flush=True)  # noqa: T201

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which would end the process by the signal: having drained is a success, status 0.
        del frame
        _log.info("%s: answering what was accepted, then stopping", signal.Signals(sig).name)
        if self._parts.runtime is None:
            # Nothing has been accepted. An exception would be lost in the load that this has interrupted.
            os._exit(0)
        # Before the socket closes: who comes now is told so.
        self._parts.runtime.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104


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
