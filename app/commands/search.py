"""`gradless search`: build an index of feature vectors, and find the images most similar to an image."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.failing import FAILED, INTERRUPTED, UNREADABLE, end, failures_reported, settings_for
from models.offline import files
from models.search.index import Neighbour, installed
from models.search.manifest import Manifest

if TYPE_CHECKING:
    from app.settings import Settings
    from models.search.building import MakeThumbnails

search = typer.Typer(help="Find the images most similar to an image, by their feature vectors.", no_args_is_help=True)

_STDOUT = Path("-")


@search.command()
def build(
    features: Annotated[Path, typer.Argument(help="a Parquet file of `gradless features`", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the index; an existing index is replaced")],
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="store a thumbnail of each image for the web page")
    ] = False,
) -> None:
    """Build an index of feature vectors for cosine similarity.

    With up to 10,000 vectors a query compares all of them. With more, it follows a graph and compares as many as needed
    to find 99 % of the ten nearest; the measured share is printed. Thumbnails are made of the files that the features
    file names, relative to the current folder. A server shows only the thumbnails, never the files.

    Exit status: 0 built; 2 failed; 130 interrupted, an existing index stays.
    """
    _need_the_extra()
    # Not above: the import is slow.
    from app.reports.progress import job_progress  # noqa: PLC0415
    from models.search.building import build as built  # noqa: PLC0415
    from models.search.features_file import FeaturesFile  # noqa: PLC0415

    settings = settings_for(None)
    try:
        with failures_reported(str(output)):
            file = FeaturesFile(features)
            with job_progress("index", file.rows) as progress, _thumbnails(settings, wanted=thumbnails) as make:
                made = built(file, output, make_thumbnails=make, on_rows=progress.advance)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    found = "a query compares all vectors" if made.exact else f"a query finds {made.recall:.1%} of the ten nearest"
    pictures = f", {made.thumbnails} with a thumbnail" if thumbnails else ""
    typer.echo(f"{output}: {made.rows} vectors of {made.model} ({made.fingerprint}){pictures}; {found}")


@search.command()
def query(
    index: Annotated[Path, typer.Argument(help="folder of an index", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="files, and folders to search recursively", show_default=False)],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="most neighbours per image")] = 10,
    model: Annotated[
        str | None, typer.Option(help="a name of `gradless models`; default: the model of the index")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="file for the neighbours as JSON; - is stdout")] = None,
) -> None:
    """Print the images of an index that are most similar to given images, with the cosine of their vectors.

    The GRADLESS_ settings must be the same as when the features were made.

    Exit status: 0 found; 1 a file is no image; 2 failed; 130 interrupted.
    """
    _need_the_extra()
    try:
        with failures_reported(str(json)):
            found = _found(index, files.find(images), k, model)
            _tell(found, json)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if any(isinstance(each, str) for each in found.values()):
        raise typer.Exit(UNREADABLE)


def _need_the_extra() -> None:
    if not installed():
        end("search needs usearch and pyarrow: pip install 'gradless[search]'", FAILED)


@contextmanager
def _thumbnails(settings: Settings, *, wanted: bool) -> Iterator[MakeThumbnails | None]:
    if not wanted:
        yield None
        return
    from models.search.thumbnails import thumbnails  # noqa: PLC0415 - as above

    limits = settings.image_limits
    with thumbnails(limits, settings.max_image_bytes) as made:
        yield made.of


def _found(folder: Path, images: list[str], k: int, model: str | None) -> dict[str, list[Neighbour] | str]:
    """Return the neighbours of each image by path, or the reason why it has none."""
    from app.main import serving_options  # noqa: PLC0415 - as above
    from models.search.querying import neighbours  # noqa: PLC0415

    settings = settings_for(model or Manifest.read(folder).model)
    return dict(neighbours(folder, images, serving_options(settings), k=k, max_bytes=settings.max_image_bytes))


def _tell(found: dict[str, list[Neighbour] | str], json: Path | None) -> None:
    # JSON on stdout moves the report to stderr.
    for path, neighbours in found.items():
        if isinstance(neighbours, str):
            typer.echo(f"gradless: {files.name(path)}: {neighbours}", err=True)
            continue
        typer.echo(files.name(path), err=json == _STDOUT)
        for neighbour in neighbours:
            typer.echo(f"  {neighbour.similarity:.4f}  {neighbour.path}", err=json == _STDOUT)
    if json is None:
        return
    report = jsonlib.dumps([_report(path, neighbours) for path, neighbours in found.items()], indent=2) + "\n"
    if json == _STDOUT:
        typer.echo(report, nl=False)
    else:
        json.write_text(report, encoding="utf-8")


def _report(path: str, found: list[Neighbour] | str) -> dict[str, object]:
    answer = {"error": found} if isinstance(found, str) else {"neighbours": [asdict(each) for each in found]}
    return {"path": files.name(path), **answer}
