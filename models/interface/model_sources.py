"""How an operator states a model: SOURCE, or NAME=SOURCE to serve it under another name."""

from __future__ import annotations

import re

# Words joined by slashes, for example timm/resnet18 or resnet50:random. Names appear in URLs, logs and metrics.
MODEL_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:-]*(/[A-Za-z0-9_][A-Za-z0-9_.:-]*)*"

_NAMED = re.compile(rf"(?P<name>{MODEL_NAME})=(?P<source>.+)")


def split_name(stated: str) -> tuple[str | None, str]:
    """Return (NAME, SOURCE) of NAME=SOURCE, else (None, `stated`). A path such as ./a=b has no name."""
    found = _NAMED.fullmatch(stated)
    return (None, stated) if found is None else (found["name"], found["source"])
