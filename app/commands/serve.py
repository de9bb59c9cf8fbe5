"""`gradless serve`: settings from options and variables, then one server process or several. `gradless settings` lists
them."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from app.commands.conventions import FAILED, end
from app.process.logs import configure_logging
from app.settings import PREFIX, Settings, SettingsError, ignored_variables, load_settings

_log = logging.getLogger(__name__)

_BOUNDS = {"gt": "over", "ge": "from", "le": "to"}


def _default_of(field: FieldInfo) -> str:
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


def _choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the values of a setting that has a closed list of them."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _option(setting: str, metavar: str = "") -> Any:
    """Return the option that replaces the variable of a setting. Its text is checked with the other settings."""
    field = Settings.model_fields[setting]
    default = _default_of(field)
    return typer.Option(
        metavar=metavar or "|".join(_choices_of(field)),
        help=f"{field.description}; default: {default}" if default else field.description,
    )


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="names of `gradless models` or paths of model folders; the first is the default model. Without any: "
            f"{_default_of(Settings.model_fields['models'])}",
        ),
    ] = None,
    *,
    host: Annotated[str | None, _option("host", "ADDRESS")] = None,
    port: Annotated[str | None, _option("port", "NUMBER")] = None,
    allowed_hosts: Annotated[str | None, _option("allowed_hosts", "NAMES")] = None,
    api_keys_file: Annotated[str | None, _option("api_keys_file", "FILE")] = None,
    models_folder: Annotated[str | None, _option("models_folder", "DIR")] = None,
    device: Annotated[str | None, _option("device", "NAME")] = None,
    backend: Annotated[str | None, _option("backend")] = None,
    precision: Annotated[str | None, _option("precision")] = None,
    http_workers: Annotated[str | None, _option("http_workers", "NUMBER")] = None,
    queue_capacity: Annotated[str | None, _option("queue_capacity", "NUMBER")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C.

    `gradless settings` lists all settings, which are GRADLESS_* variables.

    MODEL wins over GRADLESS_MODELS, and each option over its variable, as --port over GRADLESS_PORT.

    Exit status: 0 stopped; 1 failed while serving; 2 a setting is wrong; 3 the start failed.
    """
    options = {
        "models": ",".join(models) if models else None,
        "host": host,
        "port": port,
        "allowed_hosts": allowed_hosts,
        "api_keys_file": api_keys_file,
        "models_folder": models_folder,
        "device": device,
        "backend": backend,
        "precision": precision,
        "http_workers": http_workers,
        "queue_capacity": queue_capacity,
        "log_level": log_level,
    }
    try:
        settings = load_settings({name: text for name, text in options.items() if text is not None})
    except SettingsError as error:
        # A closed stderr must not change the exit status.
        configure_logging("info", "auto")
        end(str(error), FAILED)
    # Before importing PyTorch, which may log.
    configure_logging(settings.log_level, settings.log_format)
    if ignored := ignored_variables():
        _log.info("service links of Kubernetes are ignored", extra={"variables": ignored})
    # Not above: `gradless sample` and `gradless --help` need no web server.
    if workers := _workers(settings):
        from app.workers.engine_process import serve_with_workers  # noqa: PLC0415

        serve_with_workers(settings, workers)
    else:
        from app.server.server import serve as run  # noqa: PLC0415

        run(settings)


def _workers(settings: Settings) -> int:
    if settings.http_workers is not None:
        return settings.http_workers
    from models.hardware import cores  # noqa: PLC0415 - torch takes seconds to import

    return cores.http_workers(settings.device)


def settings() -> None:
    """List the GRADLESS_* variables as a Markdown table: default, bounds, meaning."""
    typer.echo(settings_table())


def settings_table() -> str:
    rows = ["| variable | default | values | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{PREFIX}{name.upper()}` | {_code(_default_of(field))} | {_values(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _values(field: FieldInfo) -> str:
    if choices := _choices_of(field):
        return ", ".join(map(_code, choices))
    if field.annotation is bool:
        return "`true`, `false`"
    return " ".join(
        f"{word} {getattr(bound, name)}"
        for bound in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(bound, name)
    )
