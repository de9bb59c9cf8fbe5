"""By which names the service may be asked for. A page on another site can make a browser ask 127.0.0.1 under a name of
its own (DNS rebinding); the name in the Host header gives it away."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.types import Scope

ANY = "*"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Orchestrators ask for these by a pod's address, whatever name it is served under; they tell nothing but that it is
# there.
PROBES = frozenset({"/healthz", "/readyz"})


# uri-host [ ":" port ] (RFC 9110, section 7.2; RFC 3986, section 3.2.2). What else an authority may have, as userinfo,
# has no place in a Host header.
_HOST = re.compile(
    rb"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*))(?::[0-9]{0,5})?"
)
_AUTHORITY_END = re.compile(rb"[/?#]")
_STANDARD_PORTS = {b"http": b":80", b"https": b":443"}

# Characters of a wrong host that its caller is shown.
_MOST_SHOWN = 100


class Hosts:
    """`allowed` are names or addresses, `*.example.org` for all below one, `*` for any."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._any = ANY in allowed
        self._allowed = frozenset(name.lower() for name in allowed)
        self._below = tuple(name.removeprefix("*").lower() for name in allowed if name.startswith("*."))

    def allow(self, scope: Scope) -> bool:
        """Whether that request may pass. One without a Host header, which no browser sends, may, and so may probes."""
        if self._any or scope["path"] in PROBES:
            return True
        stated = stated_host(scope)
        return stated is None or self.have(parse_host(stated))

    def have(self, host: str | None) -> bool:
        """Whether `host`, as `parse_host` gives it, is one of them."""
        return host is not None and (host in self._allowed or host.endswith(self._below))


def allowed_hosts(configured: Sequence[str], listening_on: str) -> Sequence[str]:
    """The configured ones; without any, this machine's own names where it alone can connect, else any: under which
    names others know a machine cannot be known here."""
    if configured:
        return configured
    return _LOOPBACK if listening_on in _LOOPBACK else (ANY,)


def own_names(configured: Sequence[str]) -> Sequence[str]:
    """Names that lead to this machine and that nobody else can point to it: those of loopback, and the configured ones
    but for `*`, which is any."""
    return (*_LOOPBACK, *(name for name in configured if name != ANY))


def fault_of_authority(target: bytes, headers: Sequence[tuple[bytes, bytes]], *, host_needed: bool) -> str | None:
    """What is wrong with the host that a request is for, as its target and Host header state it (RFC 9112, section
    3.2); None if nothing is."""
    # The parser leaves spaces at the end of a value, which are no part of it.
    stated = [value.strip(b" \t") for name, value in headers if name == b"host"]
    if len(stated) > 1:
        return "The request has more than one Host header."
    if host_needed and not stated:
        return "The request has no Host header."
    if stated and parse_host(stated[0]) is None:
        return f"The Host header is no host with an optional port: {shown(stated[0])}."
    return None if target[:1] == b"/" else _fault_of_absolute(target, stated)


def parse_host(value: bytes) -> str | None:
    """The name or address, in lower case and without brackets, of a Host header; None if it is not a host with an
    optional port. An empty value is an empty name."""
    found = _HOST.fullmatch(value)
    if found is None:
        return None
    return (found["address"] or found["name"]).decode("ascii").lower()


def _fault_of_absolute(target: bytes, stated: Sequence[bytes]) -> str | None:
    scheme, absolute, rest = target.partition(b"://")
    if not absolute:
        # No absolute form either: the parser of targets refuses it.
        return None
    if scheme.lower() not in _STANDARD_PORTS:
        return f"The target is of another protocol than HTTP: {shown(scheme)}."
    if not stated or _with_port(_AUTHORITY_END.split(rest, maxsplit=1)[0], scheme) != _with_port(stated[0], scheme):
        return "The target and the Host header name different hosts."
    return None


def _with_port(authority: bytes, scheme: bytes) -> bytes:
    authority = authority.lower()
    return authority.removesuffix(b":").removesuffix(_STANDARD_PORTS[scheme.lower()])


def shown(value: bytes) -> str:
    """A host that is not allowed, as its client may be shown it: its beginning, with what cannot be printed escaped."""
    return ascii(value[:_MOST_SHOWN].decode("latin-1"))


def stated_host(scope: Scope) -> bytes | None:
    """The value of the first Host header; None without one."""
    return next((value.strip(b" \t") for name, value in scope["headers"] if name == b"host"), None)
