"""Authorize requests by API key. Each key has rights.

Without keys every client may use inference and metrics, and only this machine may use the rest.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, get_args

from starlette.requests import Request

from app.http.hosts import AllowedHosts
from app.http.problems import ForbiddenError, UnauthorizedError

Right = Literal["inference", "debug", "metrics", "admin"]

# The characters of a bearer token (RFC 6750, section 2.1). The minimum length prevents guessing.
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
_KEY_FORM = "a key has 16 to 512 letters, digits or ._~+/=-"

# Enough for some thousand keys.
_MAX_FILE_BYTES = 1 << 20

# Set by proxies. A forwarded request is not local, even if the proxy runs on this machine.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")

_LOCAL_OR_KEY = (
    "from this machine, addressed as localhost or a name in GRADLESS_ALLOWED_HOSTS, or with a key (GRADLESS_API_KEYS)"
)

# Browsers send it with every request that is not GET or HEAD.
_ORIGIN = "origin"


class Keys:
    """The keys of a service and their rights. It stores only digests of the keys."""

    def __init__(self, rights: Mapping[str, frozenset[Right]]) -> None:
        self._rights = {_digest(key): granted for key, granted in rights.items()}

    def __bool__(self) -> bool:
        return bool(self._rights)

    def rights_of(self, key: str) -> frozenset[Right] | None:
        """Return the rights of `key`, or None if it is unknown. Takes constant time."""
        presented = _digest(key)
        found = None
        for known, granted in self._rights.items():
            # No early exit, so that the time does not depend on the key.
            if hmac.compare_digest(known, presented):
                found = granted
        return found


def parse_keys(text: str, separator: str = ",") -> Keys:
    """Parse entries such as `KEY`, which has the right `inference`, or `inference+debug+metrics:KEY`. If `separator` is
    a newline, # starts a comment.

    Raises ValueError. Its message names an entry by its number, so that no key gets into a log.
    """
    rights: dict[str, frozenset[Right]] = {}
    for number, entry in enumerate(text.split(separator), 1):
        stated = (entry.split("#")[0] if separator == "\n" else entry).strip()
        if not stated:
            continue
        names, colon, key = stated.rpartition(":")
        if not _KEY.fullmatch(key):
            raise ValueError(f"entry {number}: {_KEY_FORM}")
        if key in rights:
            raise ValueError(f"entry {number}: duplicate key")
        rights[key] = _rights(names.split("+") if colon else ["inference"], number)
    return Keys(rights)


def read_keys(keys: str | None, file: Path | None) -> Keys:
    """Return the keys of the environment, or of a file with one key per line. Raises ValueError."""
    if keys is None and file is None:
        return Keys({})
    found = parse_keys(_read(file), "\n") if file is not None else parse_keys(keys or "")
    if not found:
        raise ValueError("it contains no key")
    return found


def _read(file: Path) -> str:
    try:
        if not file.is_file() and file.exists() and not file.is_dir():
            # Reading it may block or never end.
            raise ValueError(f"{file} is a pipe or a device, not a file")
        with file.open("rb") as opened:
            text = opened.read(_MAX_FILE_BYTES + 1).decode("ascii")
    except PermissionError:
        raise ValueError(f"{file} is not readable by this user") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not plain ASCII text") from None
    if len(text) > _MAX_FILE_BYTES:
        raise ValueError(f"{file} is larger than {_MAX_FILE_BYTES} bytes, too large for a file of keys")
    return text


def authorize(request: Request, keys: Keys, right: Right, trusted_hosts: AllowedHosts) -> None:
    """Return if the client has `right`. A request from this machine needs a host in `trusted_hosts` to count as local.
    Raises UnauthorizedError, ForbiddenError."""
    if right == "debug" and _is_trusted_local(request, trusted_hosts) and not _is_cross_origin(request):
        return
    if not keys:
        if right == "debug":
            raise ForbiddenError(
                f"Debug endpoints accept requests {_LOCAL_OR_KEY}, but no cross-origin browser requests."
            )
        if right == "admin" and not (_is_trusted_local(request, trusted_hosts) and _ORIGIN not in request.headers):
            raise ForbiddenError(f"Models can be loaded and unloaded {_LOCAL_OR_KEY}, but not from a web page.")
        return
    presented = _presented(request)
    if presented is None:
        raise UnauthorizedError("This request needs an API key.")
    granted = keys.rights_of(presented)
    if granted is None:
        raise UnauthorizedError("This API key is unknown.", known=False)
    if right not in granted:
        raise ForbiddenError(f"This API key lacks the right {right}.")


def is_local(request: Request) -> bool:
    """Return True if the request comes from this machine and was not forwarded by a proxy."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        address = ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_trusted_local(request: Request, trusted_hosts: AllowedHosts) -> bool:
    """Return True if the request is local and its host is trusted. Under another host name it may come from a web page
    that uses DNS rebinding, which the browser treats as the same origin."""
    return is_local(request) and trusted_hosts.allow(request.scope)


def _is_cross_origin(request: Request) -> bool:
    """Return True if a browser sent the request for a page of another origin. Other clients send no Origin."""
    origin = request.headers.get(_ORIGIN)
    # The origin of sandboxed pages is `null`, which has no authority.
    return origin is not None and origin.lower().partition("://")[2] != request.headers.get("host", "").lower()


def _presented(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("x-api-key")


def _rights(names: list[str], number: int) -> frozenset[Right]:
    known = {str(right): right for right in get_args(Right)}
    if any(name not in known for name in names):
        raise ValueError(f"entry {number}: rights are {', '.join(known)}, joined by +")
    return frozenset(known[name] for name in names)


def _digest(key: str) -> bytes:
    # Keys are long and random, unlike passwords: no salt and no slow hash are needed. Headers are latin-1.
    return sha256(key.encode("latin-1", "replace")).digest()
