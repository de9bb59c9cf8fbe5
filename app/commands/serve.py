"""`gradless serve`: settings from options and variables, then one server process or several."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from app.commands.conventions import FAILED, end
from app.commands.settings import choices_of, default_of
from app.process.logs import configure_logging
from app.settings import Settings, SettingsError, ignored_variables, load_settings

_log = logging.getLogger(__name__)


def _option(setting: str, metavar: str = "") -> Any:
    """Return the option that replaces the variable of a setting. Its text is checked with the other settings."""
    field = Settings.model_fields[setting]
    default = default_of(field)
    return typer.Option(
        metavar=metavar or "|".join(choices_of(field)),
        help=f"{field.description}; default: {default}" if default else field.description,
    )


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="names of `gradless models` or paths of model folders; the first is the default model. Without any: "
            f"{default_of(Settings.model_fields['models'])}",
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
