"""The `gradless` command."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from app.commands.compare import compare
from app.commands.conventions import end
from app.commands.evaluate import evaluate
from app.commands.folders import classify, features
from app.commands.models import models
from app.commands.optimize import optimize
from app.commands.search import search
from app.commands.serve import serve, settings
from app.commands.stats import stats
from app.process.logs import open_standard_streams
from models.images.samples import Sample, draw, encode

app = typer.Typer(
    help="Serve image models without gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command()(serve)
app.command()(compare)
app.command()(classify)
app.command()(features)
app.add_typer(models, name="models")
app.command()(stats)
app.add_typer(search, name="search")
app.command()(evaluate)
app.command()(optimize)
app.command()(settings)


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it
    if asked:
        typer.echo(f"gradless {version('gradless')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take the options of `gradless` itself."""


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
        end(f"{path} cannot be written: {error}", 1)


def main() -> None:
    open_standard_streams()
    app()
