"""`gradless search`: build an index of feature vectors, and find the images most similar to an image."""

from __future__ import annotations

import json as jsonlib
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from app.commands.conventions import (
    FAILED,
    STDOUT,
    UNREADABLE,
    end,
    failures_reported,
    note,
    settings_for,
    write_report,
)
from models.interface.extras import install_command, installed
from models.offline import files
from models.search.index import Manifest, Neighbour, SearchIndex

search = typer.Typer(help="Find the images most similar to an image, by their feature vectors.", no_args_is_help=True)

# Longer side in pixels: twice the displayed size, for high-resolution screens.
_THUMBNAIL_SIDE = 192

_IMAGES_AT_ONCE = 8


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
    # Not above: the imports are slow.
    from app.reports.progress import job_progress  # noqa: PLC0415
    from models.offline.reading import thumbnail  # noqa: PLC0415
    from models.search.building import FeaturesFile  # noqa: PLC0415
    from models.search.building import build as built  # noqa: PLC0415

    settings = settings_for(None)
    picture = partial(thumbnail, limits=settings.image_limits, max_bytes=settings.max_image_bytes, side=_THUMBNAIL_SIDE)
    with failures_reported(str(output)):
        file = FeaturesFile(features)
        with job_progress("index", file.rows) as progress:
            thumbnail_of = picture if thumbnails else lambda _path: None
            made = built(file, output, thumbnail=thumbnail_of, on_rows=progress.advance)
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
    with failures_reported(str(json)):
        found = _found(index, files.find(images, note), k, model)
        _report(found, json)
    if any(isinstance(each, str) for each in found.values()):
        raise typer.Exit(UNREADABLE)


def _need_the_extra() -> None:
    if not installed("pyarrow", "usearch"):
        end(f"search needs usearch and pyarrow: {install_command('search')}", FAILED)


def _found(folder: Path, images: list[str], k: int, model: str | None) -> dict[str, list[Neighbour] | str]:
    """Return the neighbours of each image by path, or a sentence that says why it has none."""
    from app.main import serving_options  # noqa: PLC0415 - as above
    from models.inference.image_job import ItemOutput  # noqa: PLC0415
    from models.offline.reading import Reading, batches  # noqa: PLC0415
    from models.offline.running import Runner  # noqa: PLC0415

    settings = settings_for(model or Manifest.read(folder).model)
    options = serving_options(settings)
    found: dict[str, list[Neighbour] | str] = {}
    with closing(Runner(options, batch_size=_IMAGES_AT_ONCE)) as runner:
        index = SearchIndex.open(folder)
        index.check_model({runner.model.name: runner.model.fingerprint})
        reading = Reading(runner.model.transform, options.limits, settings.max_image_bytes)
        for batch in batches(images, reading, batch_size=_IMAGES_AT_ONCE, workers=0):
            for path, answer in batch.with_answers(runner.answer(batch.pixels, top_k=0)):
                if isinstance(answer, ItemOutput):
                    found[path] = index.search(answer.features[None], k)[0]
                else:
                    found[path] = str(answer)
    return found


def _report(found: dict[str, list[Neighbour] | str], json: Path | None) -> None:
    # JSON on stdout moves the report to stderr.
    for path, neighbours in found.items():
        if isinstance(neighbours, str):
            note(f"{files.name(path)}: {neighbours}")
            continue
        typer.echo(files.name(path), err=json == STDOUT)
        for neighbour in neighbours:
            typer.echo(f"  {neighbour.similarity:.4f}  {neighbour.path}", err=json == STDOUT)
    if json is not None:
        report = [_as_dict(path, neighbours) for path, neighbours in found.items()]
        write_report(json, jsonlib.dumps(report, indent=2) + "\n")


def _as_dict(path: str, found: list[Neighbour] | str) -> dict[str, object]:
    answer = {"error": found} if isinstance(found, str) else {"neighbours": [asdict(each) for each in found]}
    return {"path": files.name(path), **answer}
