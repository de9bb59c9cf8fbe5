"""The `gradless` command."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.commands.compare import compare
from app.commands.evaluate import evaluate
from app.commands.folders import classify, features
from app.commands.models import models
from app.commands.optimize import optimize
from app.commands.search import search
from app.commands.settings_table import settings_table
from app.commands.stats import stats
from app.process.logs import configure_logging, open_standard_streams
from app.settings import Settings, SettingsError, ignored_variables, load_settings
from models.images.samples import Sample, draw, encode

_log = logging.getLogger(__name__)

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
    """Serve the models of GRADLESS_MODELS until SIGTERM. Settings are GRADLESS_* variables; see the README."""
    try:
        settings = load_settings()
    except SettingsError as error:
        # The status stays the same where the lines cannot be written.
        configure_logging("info", "auto")
        for line in str(error).splitlines():
            typer.echo(f"gradless: {line}", err=True)
        raise typer.Exit(2) from None
    # PyTorch, which knows of GPUs, may have something to say as it is imported.
    configure_logging(settings.log_level, settings.log_format)
    if ignored := ignored_variables():
        _log.info("service links of Kubernetes are ignored", extra={"variables": ignored})
    # Here, not above: `gradless sample` and `gradless --help` need not wait for the web server's imports.
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
    path: Annotated[str, typer.Argument(help="file to write, its ending the format; - writes PNG to stdout")],
    picture: Annotated[Sample, typer.Option(help="what to draw")] = "clock",
) -> None:
    """Draw a picture that an ImageNet network names rightly: a first try needs no photograph."""
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


def main() -> None:
    open_standard_streams()
    app()
