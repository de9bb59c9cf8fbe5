"""By which names the service may be asked for. A page on another site can make a browser ask 127.0.0.1 under a name of
its own (DNS rebinding); the name in the Host header gives it away."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.faults import answer
from app.problems import UNKNOWN_HOST

ANY = "*"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Orchestrators ask for these by a pod's address, whatever name it is served under; they tell nothing but that it is
# there.
_PROBES = frozenset({"/healthz", "/readyz"})


class Hosts:
    """`allowed` are names or addresses, `*.example.org` for all below one, `*` for any."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._any = ANY in allowed
        self._allowed = frozenset(name.lower() for name in allowed)
        self._below = tuple(name.removeprefix("*").lower() for name in allowed if name.startswith("*."))

    def allow(self, scope: Scope) -> bool:
        """Whether that request may pass. One without a Host header, which no browser sends, may, and so may probes."""
        if self._any or scope["path"] in _PROBES:
            return True
        host = _host(scope)
        return host is None or host in self._allowed or host.endswith(self._below)


class HostCheck:
    """Refuses requests for other hosts than `hosts`."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._hosts.allow(scope):
            detail = f"It is not served under {_host(scope)!a}; GRADLESS_ALLOWED_HOSTS says under which names it is."
            await answer(Request(scope), UNKNOWN_HOST, detail)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def allowed_hosts(configured: Sequence[str], listening_on: str) -> Sequence[str]:
    """The configured ones; without any, this machine's own names where it alone can connect, else any: under which
    names others know a machine cannot be known here."""
    if configured:
        return configured
    return _LOOPBACK if listening_on in _LOOPBACK else (ANY,)


def _host(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"host":
            stated: str = value.decode("latin-1").lower()
            if stated.startswith("["):
                return stated[1:].partition("]")[0]
            return stated.partition(":")[0]
    return None
