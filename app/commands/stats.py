"""`gradless stats`: mean and standard deviation of one's own images, for model.toml, and what there is of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.failing import FAILED, INTERRUPTED, UNREADABLE, end, failures_said, settings_for
from app.settings import Settings
from models.offline.files import find, name

if TYPE_CHECKING:
    from models.images.transforms import Transform
    from models.offline.survey import Survey

_STDOUT = Path("-")


def stats(
    paths: Annotated[list[Path], typer.Argument(help="folders, looked through with all below them, and files")],
    as_served: Annotated[
        bool, typer.Option("--as-served", help="of the pixels that a model gets, after its resize and crop")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="with --as-served: a name of `gradless models`; the default without it")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="file for all of it as JSON; - is stdout")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a file is broken")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="processes that decode; without it one for each core")
    ] = None,
) -> None:
    """Print mean and standard deviation by channel of images of yours, ready to paste into model.toml.

    Over every pixel of every image in full size, scaled to 0 to 1: a large image counts for more than a small one. The
    deviation is that of all these pixels about the one mean, with their number as divisor; the mean of each image's own
    deviation, which is seen in the wild as well, is smaller. Images are decoded as the service does, and held to its
    limits. Broken files are listed and left out.

    Exit status: 0 done; 1 a file is broken, with --strict; 2 not done; 130 interrupted, what was done until then
    printed.
    """
    if model is not None and not as_served:
        end("--model is for --as-served alone", FAILED)
    settings = settings_for(model)
    served_as = settings.models[0] if as_served else None
    try:
        with failures_said(str(json)):
            complete, found = _surveyed(find(paths), settings, served_as, workers)
            _list_broken(found)
            if found.images:
                _tell(found, served_as, json, complete=complete)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if not complete:
        end(f"interrupted: this is of the first {found.images} images", INTERRUPTED)
    if not found.images:
        end("no file has a picture that can be decoded", FAILED)
    if strict and found.broken:
        raise typer.Exit(UNREADABLE)


def _surveyed(files: list[str], settings: Settings, served_as: str | None, workers: int | None) -> tuple[bool, Survey]:
    """Whether all was looked at, and what was found."""
    # Here, not above: other commands need not wait for it.
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
    with job_progress("stats", len(files)) as told:
        try:
            for path, picture in pictures:
                found.add(path, picture)
                told.advance(1)
        except KeyboardInterrupt:
            return False, found
    return True, found


def _transform_of(model: str) -> Transform:
    from models.loading.catalog import find  # noqa: PLC0415 - as above

    return find(model).build().transform


def _list_broken(found: Survey) -> None:
    if found.broken:
        typer.echo(f"gradless: {len(found.broken)} of {found.images + len(found.broken)} files left out:", err=True)
    for path, reason in found.broken.items():
        typer.echo(f"gradless:   {name(path)}: {reason}", err=True)


def _tell(found: Survey, served_as: str | None, json: Path | None, *, complete: bool) -> None:
    from app.reports.stats_text import as_json, as_toml  # noqa: PLC0415 - as above

    # Where stdout is for the JSON, people read the rest on stderr.
    typer.echo("\n".join(as_toml(found, served_as)), err=json == _STDOUT)
    if json is None:
        return
    report = as_json(found, served_as, complete=complete)
    if json == _STDOUT:
        typer.echo(report, nl=False)
    else:
        json.write_text(report, encoding="utf-8")
