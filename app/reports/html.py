"""Render a report as one HTML file that loads nothing: text, tables, charts and style are in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gradless.units import in_bytes, in_seconds


def percent(share: float) -> str:
    """Format a share, 0..1, with a no-break space before the sign."""
    return f"{100 * share:.1f}\u00a0%"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"in_bytes": in_bytes, "in_seconds": in_seconds, "percent": percent}


def render(template: str, **values: Any) -> str:
    """Render the template of that file name, which extends page.html.jinja."""
    return _ENVIRONMENT.get_template(template).render(values)
