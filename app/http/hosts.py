"""Check the host of a request against the names that this service answers to; validate configured hosts and origins.

With DNS rebinding a web page makes a browser send requests to 127.0.0.1 under the page's own host name. The Host header
reveals that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.types import Scope

ANY = "*"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Orchestrators send probes to a pod's address, under no configured name. The responses reveal only that it runs.
PROBES = frozenset(
    {
        "/healthz",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
        "/ping",
        "/health",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)

# uri-host [ ":" port ] (RFC 9110, section 7.2; RFC 3986, section 3.2.2). A Host header must not contain userinfo.
_HOST_HEADER = re.compile(
    rb"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*))(?::[0-9]{0,5})?"
)
_AUTHORITY_END = re.compile(rb"[/?#]")
_STANDARD_PORTS = {b"http": b":80", b"https": b":443"}

_NAME = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
_CONFIGURED_HOST = re.compile(rf"(?:\*\.)?{_NAME}")
# The form that browsers send (RFC 6454, section 6.2): lower case, without a path or a trailing slash.
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_NAME}|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_STANDARD_PORT = re.compile(r"http:.*:80|https:.*:443")

# Characters of a wrong host that an error message quotes.
_MAX_QUOTED = 100


class AllowedHosts:
    """A set of host names: names or addresses, `*.example.org` for all subdomains, `*` for any host."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._any = ANY in allowed
        self._allowed = frozenset(name.lower() for name in allowed)
        self._below = tuple(name.removeprefix("*").lower() for name in allowed if name.startswith("*."))

    def allow(self, scope: Scope) -> bool:
        """Return True if the request is for one of these hosts. Probes, and requests without a Host header (browsers
        always send one), are allowed."""
        if self._any or scope["path"] in PROBES:
            return True
        stated = host_header(scope)
        return stated is None or self.matches(parse_host(stated))

    def matches(self, host: str | None) -> bool:
        """Return True if `host`, as `parse_host` returns it, is one of these hosts."""
        return host is not None and (host in self._allowed or host.endswith(self._below))


def allowed_hosts(configured: Sequence[str], listen_address: str) -> Sequence[str]:
    """Return the configured hosts. Without any: loopback names if the service listens on loopback, else any host,
    because a process does not know the names that other machines use for it."""
    return configured or (_LOOPBACK if listen_address in _LOOPBACK else (ANY,))


def trusted_hosts(configured: Sequence[str]) -> Sequence[str]:
    """Return the names that only the operator can point to this machine: those of loopback, and the configured ones
    without `*`."""
    return (*_LOOPBACK, *(name for name in configured if name != ANY))


def authority_error(target: bytes, headers: Sequence[tuple[bytes, bytes]], *, host_needed: bool) -> str | None:
    """Return what is wrong with the host in target and Host header (RFC 9112, section 3.2), or None."""
    # The parser keeps trailing spaces, which are not part of the value.
    stated = [value.strip(b" \t") for name, value in headers if name == b"host"]
    if len(stated) > 1:
        return "The request has more than one Host header."
    if host_needed and not stated:
        return "The request has no Host header."
    if stated and parse_host(stated[0]) is None:
        return f"The Host header must be a host with an optional port: {printable(stated[0])}."
    return None if target[:1] == b"/" else _absolute_target_error(target, stated)


def parse_host(value: bytes) -> str | None:
    """Return the name or address of a Host header, in lower case and without brackets. Return None if it is not a host
    with an optional port. An empty value is an empty name."""
    found = _HOST_HEADER.fullmatch(value)
    return None if found is None else (found["address"] or found["name"]).decode("ascii").lower()


def _absolute_target_error(target: bytes, stated: Sequence[bytes]) -> str | None:
    scheme, absolute, rest = target.partition(b"://")
    if not absolute:
        # Not in absolute form either: the URL parser refuses it.
        return None
    if scheme.lower() not in _STANDARD_PORTS:
        return f"The scheme of the target must be http or https: {printable(scheme)}."
    if not stated or _with_port(_AUTHORITY_END.split(rest, maxsplit=1)[0], scheme) != _with_port(stated[0], scheme):
        return "The target and the Host header name different hosts."
    return None


def _with_port(authority: bytes, scheme: bytes) -> bytes:
    return authority.lower().removesuffix(b":").removesuffix(_STANDARD_PORTS[scheme.lower()])


def printable(value: bytes) -> str:
    """Return the start of `value`, with unprintable characters escaped, for an error message."""
    return ascii(value[:_MAX_QUOTED].decode("latin-1"))


def host_header(scope: Scope) -> bytes | None:
    """Return the value of the first Host header, or None."""
    return next((value.strip(b" \t") for name, value in scope["headers"] if name == b"host"), None)


def host_and_port(host: str, port: int) -> str:
    """Return HOST:PORT, or [HOST]:PORT for an address of IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `names` if each is a name, an address, `*.name` or `*`. Raises ValueError."""
    for name in names:
        if name != ANY and not _CONFIGURED_HOST.fullmatch(name) and not _is_address(name):
            raise ValueError(f"{name} is not a host: use a name or address without scheme, port, path or brackets")
    return names


def origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return `values` if each is an origin in the form that browsers send, or `*`; others would never match. Raises
    ValueError."""
    for origin in values:
        sent = _ORIGIN.fullmatch(origin) and origin == origin.lower() and not _STANDARD_PORT.fullmatch(origin)
        if origin != ANY and not sent:
            raise ValueError(
                f"{origin} is not an origin: use scheme://host[:port], lower case, no default port, no trailing slash"
            )
    return values


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
