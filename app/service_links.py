"""Recognize Kubernetes service links: variables that Kubernetes sets in every pod for each Service of its namespace.

A Service named `gradless` sets `GRADLESS_PORT=tcp://10.43.0.1:80`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The name of the Service begins with gradless, for example gradless-gpu.
_SERVICE = r"GRADLESS(?:_[A-Z0-9]+)*"
_PORT = rf"{_SERVICE}_PORT_\d+_(?:TCP|UDP|SCTP)"
_ADDRESS = r"[0-9a-fA-F.:]+"
_URL = rf"(?:tcp|udp|sctp)://(?:{_ADDRESS}|\[{_ADDRESS}\]):\d+"

# Both name and value must match: a setting with the same name has another form of value.
_FORMS = tuple(
    (re.compile(name), re.compile(value))
    for name, value in (
        (rf"{_SERVICE}_SERVICE_HOST", _ADDRESS),
        (rf"{_SERVICE}_SERVICE_PORT(?:_[A-Z0-9_]+)?", r"\d+"),
        (rf"{_SERVICE}_PORT", _URL),
        (_PORT, _URL),
        (rf"{_PORT}_PROTO", "tcp|udp|sctp"),
        (rf"{_PORT}_PORT", r"\d+"),
        (rf"{_PORT}_ADDR", _ADDRESS),
    )
)


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the service links in `environment`, sorted."""
    return sorted(
        variable
        for variable, stated in environment.items()
        if any(name.fullmatch(variable) and value.fullmatch(stated) for name, value in _FORMS)
    )
