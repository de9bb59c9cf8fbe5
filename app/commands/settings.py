"""`gradless settings`: list the settings, with the texts that other commands show of them."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from app.settings import PREFIX, Settings

_BOUNDS = {"gt": "over", "ge": "from", "le": "to"}


def settings() -> None:
    """List the GRADLESS_* variables as a Markdown table: default, bounds, meaning."""
    typer.echo(settings_table())


def settings_table() -> str:
    rows = ["| variable | default | values | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{PREFIX}{name.upper()}` | {_code(default_of(field))} | {_values(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(rows)


def default_of(field: FieldInfo) -> str:
    """Return the default as its variable would have it; empty if there is none."""
    match field.default:
        case None | ():
            return ""
        case bool(value):
            return str(value).lower()
        case tuple(names):
            return ",".join(names)
        case value:
            return str(value)


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the values of a setting that has a closed list of them."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _values(field: FieldInfo) -> str:
    if choices := choices_of(field):
        return ", ".join(map(_code, choices))
    if field.annotation is bool:
        return "`true`, `false`"
    return " ".join(
        f"{word} {getattr(bound, name)}"
        for bound in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(bound, name)
    )
