"""Host names and origins as an operator may write them: what no browser ever sends would never match, and nobody would
know why."""

from __future__ import annotations

import re
from ipaddress import ip_address

_NAME = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
_HOST = re.compile(rf"(?:\*\.)?{_NAME}")
# As browsers send it (RFC 6454, section 6.2): in lower case, and with no path, not even a slash.
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_NAME}|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_STANDARD_PORT = re.compile(r"http:.*:80|https:.*:443")

_ANY = "*"


def host_names(stated: tuple[str, ...]) -> tuple[str, ...]:
    """`stated`, where each is a name, an address, `*.name` or `*`. Raises ValueError."""
    for name in stated:
        if name != _ANY and not _HOST.fullmatch(name) and not _is_address(name):
            raise ValueError(
                f"{name} is no host: it is a name or address alone, without scheme, port, path or brackets"
            )
    return stated


def origins(stated: tuple[str, ...]) -> tuple[str, ...]:
    """`stated`, where each is an origin as browsers send it, or `*`. Raises ValueError."""
    for origin in stated:
        if origin != _ANY and (
            not _ORIGIN.fullmatch(origin) or origin != origin.lower() or _STANDARD_PORT.fullmatch(origin)
        ):
            raise ValueError(
                f"{origin} is no origin: scheme://host, with :port if not the usual, no slash at its end, lower case"
            )
    return stated


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
