"""`gradless stats`: mean and standard deviation of images, for model.toml, and a survey of the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.failing import FAILED, INTERRUPTED, UNREADABLE, end, failures_reported, settings_for
from app.settings import Settings
from models.offline.files import find, name

if TYPE_CHECKING:
    from models.images.preprocessing import Transform
    from models.offline.survey import Survey

_STDOUT = Path("-")


def stats(
    paths: Annotated[list[Path], typer.Argument(help="files, and folders to search recursively")],
    as_served: Annotated[
        bool, typer.Option("--as-served", help="use the pixels that a model gets, after its resize and crop")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="with --as-served: a name of `gradless models`; default: GRADLESS_MODELS' first"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="file for the report as JSON; - is stdout")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a file is broken")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="processes that decode; default: one per core")
    ] = None,
) -> None:
    """Print mean and standard deviation per channel of your images, ready to paste into model.toml.

    They are over every pixel of every image in full size, scaled to 0..1, so a large image counts more than a small
    one. The deviation is of all pixels about the common mean, with their number as divisor. The mean of each image's
    own deviation, which some projects use, is smaller. Images are decoded as the server does, with its limits. Broken
    files are listed and skipped.

    Exit status: 0 done; 1 a file is broken, with --strict; 2 failed; 130 interrupted, after printing the result so far.
    """
    if model is not None and not as_served:
        end("--model needs --as-served", FAILED)
    settings = settings_for(model)
    served_as = settings.models[0] if as_served else None
    try:
        with failures_reported(str(json)):
            complete, found = _surveyed(find(paths), settings, served_as, workers)
            _list_broken(found)
            if found.images:
                _report(found, served_as, json, complete=complete)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if not complete:
        end(f"interrupted: these are the results of the first {found.images} images", INTERRUPTED)
    if not found.images:
        end("no file is an image that can be decoded", FAILED)
    if strict and found.broken:
        raise typer.Exit(UNREADABLE)


def _surveyed(files: list[str], settings: Settings, served_as: str | None, workers: int | None) -> tuple[bool, Survey]:
    """Return whether all files were read, and the results."""
    # Not above: the import is slow.
    from app.reports.progress import job_progress  # noqa: PLC0415
    from models.offline.survey import Survey, survey  # noqa: PLC0415

    found = Survey()
    pictures = survey(
        files,
        limits=settings.image_limits,
        max_file_bytes=settings.max_image_bytes,
        transform=None if served_as is None else _transform_of(served_as),
        workers=workers,
    )
    with job_progress("stats", len(files)) as progress:
        try:
            for path, picture in pictures:
                found.add(path, picture)
                progress.advance(1)
        except KeyboardInterrupt:
            return False, found
    return True, found


def _transform_of(model: str) -> Transform:
    from models.loading.catalog import find  # noqa: PLC0415 - as above

    return find(model).build().transform


def _list_broken(found: Survey) -> None:
    if found.broken:
        typer.echo(f"gradless: {len(found.broken)} of {found.images + len(found.broken)} files skipped:", err=True)
    for path, reason in found.broken.items():
        typer.echo(f"gradless:   {name(path)}: {reason}", err=True)


def _report(found: Survey, served_as: str | None, json: Path | None, *, complete: bool) -> None:
    from app.reports.stats_text import as_json, as_toml  # noqa: PLC0415 - as above

    # JSON on stdout moves the report to stderr.
    typer.echo("\n".join(as_toml(found, served_as)), err=json == _STDOUT)
    if json is None:
        return
    report = as_json(found, served_as, complete=complete)
    if json == _STDOUT:
        typer.echo(report, nl=False)
    else:
        json.write_text(report, encoding="utf-8")
