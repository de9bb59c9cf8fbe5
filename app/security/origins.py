"""Validate configured host names and CORS origins. A form that browsers never send would silently never match."""

from __future__ import annotations

import re
from ipaddress import ip_address

_NAME = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
_HOST = re.compile(rf"(?:\*\.)?{_NAME}")
# The form that browsers send (RFC 6454, section 6.2): lower case, without a path or a trailing slash.
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_NAME}|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_STANDARD_PORT = re.compile(r"http:.*:80|https:.*:443")

_ANY = "*"


def host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `names` if each is a name, an address, `*.name` or `*`. Raises ValueError."""
    for name in names:
        if name != _ANY and not _HOST.fullmatch(name) and not _is_address(name):
            raise ValueError(f"{name} is not a host: use a name or address without scheme, port, path or brackets")
    return names


def origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return `values` if each is an origin in the form that browsers send, or `*`. Raises ValueError."""
    for origin in values:
        if origin != _ANY and (
            not _ORIGIN.fullmatch(origin) or origin != origin.lower() or _STANDARD_PORT.fullmatch(origin)
        ):
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
