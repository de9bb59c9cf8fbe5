"""Variables that Kubernetes sets in every pod for each Service of its namespace ("service links"): a Service named
`gradless` gives `GRADLESS_PORT=tcp://10.43.0.1:80`."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Of a Service whose name begins so: gradless, gradless-gpu.
_SERVICE = r"GRADLESS(?:_[A-Z0-9]+)*"
_PORT = rf"{_SERVICE}_PORT_\d+_(?:TCP|UDP|SCTP)"
_ADDRESS = r"[0-9a-fA-F.:]+"
_URL = rf"(?:tcp|udp|sctp)://(?:{_ADDRESS}|\[{_ADDRESS}\]):\d+"

# Name and value: what a person may have meant as a setting has another value.
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
    """The names of such variables, sorted."""
    return sorted(
        variable
        for variable, stated in environment.items()
        if any(name.fullmatch(variable) and value.fullmatch(stated) for name, value in _FORMS)
    )
