"""Print every setting as a Markdown table, for `gradless settings` and the documentation."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from app.settings import PREFIX, Settings

_BOUNDS = {"gt": "over", "ge": "from", "le": "to"}


def settings_table() -> str:
    rows = ["| variable | default | values | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_values(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    match field.default:
        case None | ():
            return ""
        case bool(value):
            return f"`{str(value).lower()}`"
        case tuple(names):
            return f"`{','.join(names)}`"
        case value:
            return f"`{value}`"


def _values(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    words = [
        f"{word} {getattr(bound, name)}"
        for bound in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    return " ".join(words)
