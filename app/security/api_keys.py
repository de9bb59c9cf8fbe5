"""Who may do what: API keys, each with its rights. Without any, everybody may ask for inference and metrics, and this
machine for the rest."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, get_args

from starlette.requests import Request

from app.http.allowed_hosts import AllowedHosts
from app.http.problems import ForbiddenError, UnauthorizedError

Right = Literal["inference", "debug", "metrics", "admin"]

# What may stand in a bearer token (RFC 6750, section 2.1), and enough of it that nobody guesses.
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
_KEY_FORM = "a key has 16 to 512 letters, digits or ._~+/=-"

# Some thousand keys.
_LARGEST_FILE_BYTES = 1 << 20

# Set by proxies: what comes through one does not come from this machine, even where the proxy does.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")

_LOCALLY = (
    "to this machine under the name localhost or one of GRADLESS_ALLOWED_HOSTS, or with a key (GRADLESS_API_KEYS)"
)

# Browsers send it with whatever changes something. A page of another's that is open on this machine may not.
_OF_A_PAGE = "origin"


class Keys:
    """The keys of a service and their rights. It knows digests alone: no key can be read out of it."""

    def __init__(self, rights: Mapping[str, frozenset[Right]]) -> None:
        self._rights = {_digest(key): granted for key, granted in rights.items()}

    def __bool__(self) -> bool:
        return bool(self._rights)

    def rights_of(self, key: str) -> frozenset[Right] | None:
        """The rights of `key`; None for one that is none. Takes as long whatever the key."""
        offered = _digest(key)
        found = None
        for known, granted in self._rights.items():
            # Each is looked at, also after one was found.
            if hmac.compare_digest(known, offered):
                found = granted
        return found


def parse_keys(text: str, separator: str = ",") -> Keys:
    """Keys of entries like `KEY`, which may ask for inference, or `inference+debug+metrics:KEY`. Of lines, what
    follows a # is a comment.

    Raises ValueError, which names an entry by its place: a key in a message would end up in a log.
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
            raise ValueError(f"entry {number}: this key stands there already")
        rights[key] = _rights(names.split("+") if colon else ["inference"], number)
    return Keys(rights)


def read_keys(keys: str | None, file: Path | None) -> Keys:
    """The keys of the environment, or of a file with one in each line. Raises ValueError."""
    if keys is not None:
        return _some(parse_keys(keys))
    if file is None:
        return Keys({})
    try:
        text = _start_of(file).decode("ascii")
    except PermissionError:
        raise ValueError(f"{file} is not readable by this user") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not plain ASCII text") from None
    return _some(parse_keys(text, "\n"))


def _start_of(file: Path) -> bytes:
    if not file.is_file() and file.exists() and not file.is_dir():
        # It may have no end, or never begin.
        raise ValueError(f"{file} is a pipe or a device, not a file")
    with file.open("rb") as opened:
        text = opened.read(_LARGEST_FILE_BYTES + 1)
    if len(text) > _LARGEST_FILE_BYTES:
        raise ValueError(f"{file} is larger than {_LARGEST_FILE_BYTES} bytes, and so no file of keys")
    return text


def authorize(request: Request, keys: Keys, right: Right, trusted_hosts: AllowedHosts) -> None:
    """Return if the client has `right`. A request from this machine needs a host in `trusted_hosts` to count as local.
    Raises UnauthorizedError, ForbiddenError."""
    if right == "debug" and _is_trusted(request, trusted_hosts) and not _of_another_page(request):
        return
    if not keys:
        if right == "debug":
            raise ForbiddenError(f"Debug endpoints answer {_LOCALLY}, and to no page of another origin there.")
        if right == "admin" and not (_is_trusted(request, trusted_hosts) and _OF_A_PAGE not in request.headers):
            raise ForbiddenError(f"Requests that change models are answered {_LOCALLY}, and to no page there.")
        return
    offered = _offered(request)
    if offered is None:
        raise UnauthorizedError("This needs an API key.")
    granted = keys.rights_of(offered)
    if granted is None:
        raise UnauthorizedError("This API key is not known.", known=False)
    if right not in granted:
        raise ForbiddenError(f"This API key may not ask for {right}.")


def is_local(request: Request) -> bool:
    """Whether the request comes from a process of this machine, and from no proxy that says that it is one."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        address = ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_trusted(request: Request, trusted_hosts: AllowedHosts) -> bool:
    """Whether it comes from this machine, under a name of its own. Under another name it may come from a page whose
    name was made to lead here (DNS rebinding): the browser takes that page for one of this service's."""
    return is_local(request) and trusted_hosts.allow(request.scope)


def _of_another_page(request: Request) -> bool:
    """Whether a browser sends it for a page that is not of this service. What is no browser sends no Origin."""
    origin = request.headers.get(_OF_A_PAGE)
    # `null`, which sandboxed pages are, has no authority.
    return origin is not None and origin.lower().partition("://")[2] != request.headers.get("host", "").lower()


def _offered(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("x-api-key")


def _rights(names: list[str], number: int) -> frozenset[Right]:
    known = {str(right): right for right in get_args(Right)}
    if any(name not in known for name in names):
        raise ValueError(f"entry {number}: rights are {', '.join(known)}, joined by +")
    return frozenset(known[name] for name in names)


def _some(keys: Keys) -> Keys:
    if not keys:
        raise ValueError("there is no key in it")
    return keys


def _digest(key: str) -> bytes:
    # Not a password: a key is long, and a digest of it needs no salt and no slowness. latin-1 is what headers come in.
    return sha256(key.encode("latin-1", "replace")).digest()
