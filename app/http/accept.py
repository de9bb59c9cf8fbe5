"""What a caller accepts: the Accept header, as far as there is a choice."""

from __future__ import annotations

import re


def accepts(header: str, media_type: str) -> bool:
    """Whether `header` names `media_type` itself, a wildcard not being a wish, and does not weigh it with 0."""
    for media_range in header.lower().split(","):
        named, *parameters = (part.strip() for part in media_range.split(";"))
        if named == media_type:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False
