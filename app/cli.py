"""The `gradless` command."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from app.commands.compare import compare
from app.commands.evaluate import evaluate
from app.commands.folders import classify, features
from app.commands.models import models
from app.commands.optimize import optimize
from app.commands.search import search
from app.commands.stats import stats
from app.process.logs import configure_logging, open_standard_streams
from app.settings import PREFIX, Settings, SettingsError, ignored_variables, load_settings
from models.images.samples import Sample, draw, encode

_log = logging.getLogger(__name__)

_BOUNDS = {"gt": "over", "ge": "from", "le": "to"}

app = typer.Typer(
    help="Serve image models without gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command()(compare)
app.command()(classify)
app.command()(features)
app.add_typer(models, name="models")
app.command()(stats)
app.add_typer(search, name="search")
app.command()(evaluate)
app.command()(optimize)


@app.command()
def serve() -> None:
    """Serve the models of GRADLESS_MODELS until SIGTERM. Settings are GRADLESS_* variables: see `gradless settings`."""
    try:
        settings = load_settings()
    except SettingsError as error:
        # A closed stderr must not change the exit status.
        configure_logging("info", "auto")
        for line in str(error).splitlines():
            typer.echo(f"gradless: {line}", err=True)
        raise typer.Exit(2) from None
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


@app.command()
def sample(
    path: Annotated[str, typer.Argument(help="file to write, its suffix gives the format; - writes PNG to stdout")],
    picture: Annotated[Sample, typer.Option(help="what to draw")] = "clock",
) -> None:
    """Draw an image that an ImageNet model classifies correctly, for a first try without a photograph."""
    try:
        if path == "-":
            sys.stdout.buffer.write(encode(draw(picture), "PNG"))
            sys.stdout.buffer.flush()
        else:
            draw(picture).save(Path(path))
    except (OSError, ValueError) as error:
        typer.echo(f"gradless: {path} cannot be written: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def settings() -> None:
    """List the GRADLESS_* variables as a Markdown table: default, bounds, meaning."""
    typer.echo(settings_table())


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
    return " ".join(
        f"{word} {getattr(bound, name)}"
        for bound in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(bound, name)
    )


def main() -> None:
    open_standard_streams()
    app()
