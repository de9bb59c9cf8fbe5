"""`gradless stats`: mean and standard deviation of images, for model.toml, and a survey of the files."""

from __future__ import annotations

import json as json_format
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.conventions import (
    FAILED,
    INTERRUPTED,
    STDOUT,
    UNREADABLE,
    Json,
    end,
    failures_reported,
    note,
    settings_for,
    write_report,
)
from app.settings import Settings
from models.offline.files import find, name

if TYPE_CHECKING:
    from models.images.preprocessing import Transform
    from models.offline.survey import Survey

# Sizes listed: a folder of photographs may have many.
_COMMON_SIZES = 5


def stats(
    paths: Annotated[list[Path], typer.Argument(help="files, and folders to search recursively")],
    as_served: Annotated[
        bool, typer.Option("--as-served", help="use the pixels that a model gets, after its resize and crop")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="with --as-served: a name of `gradless models`; default: GRADLESS_MODELS' first")
    ] = None,
    json: Json = None,
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
    model = settings.models[0] if as_served else None
    with failures_reported(str(json)):
        complete, found = _surveyed(find(paths, note), settings, model, workers)
        _list_broken(found)
        if found.images:
            _report(found, model, json, complete=complete)
    if not complete:
        end(f"interrupted: these are the results of the first {found.images} images", INTERRUPTED)
    if not found.images:
        end("no file is an image that can be decoded", FAILED)
    if strict and found.broken:
        raise typer.Exit(UNREADABLE)


def _surveyed(files: list[str], settings: Settings, model: str | None, workers: int | None) -> tuple[bool, Survey]:
    """Return whether all files were read, and the results."""
    # Not above: the import is slow.
    from app.reports.progress import job_progress  # noqa: PLC0415
    from models.offline.survey import Survey, survey  # noqa: PLC0415

    found = Survey()
    pictures = survey(
        files,
        limits=settings.image_limits,
        max_file_bytes=settings.max_image_bytes,
        transform=None if model is None else _transform_of(model),
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
        note(f"{len(found.broken)} of {found.images + len(found.broken)} files skipped:")
    for path, reason in found.broken.items():
        note(f"  {name(path)}: {reason}")


def _report(found: Survey, model: str | None, json: Path | None, *, complete: bool) -> None:
    """Print and write the results. `found` has at least one image."""
    # JSON on stdout moves the report to stderr.
    typer.echo("\n".join(_as_toml(found, model)), err=json == STDOUT)
    if json is not None:
        report = _as_dict(found, model, complete=complete)
        write_report(json, json_format.dumps(report, indent=2) + "\n")


def _as_toml(found: Survey, model: str | None) -> list[str]:
    """Return lines for model.toml, other facts as comments."""
    sizes = found.sizes.most_common(_COMMON_SIZES)
    rest = len(found.sizes) - len(sizes)
    common = ", ".join(f"{width} x {height} ({times})" for (width, height), times in sizes)
    formats = ", ".join(f"{times} {name}" for name, times in found.formats.most_common())
    return [
        f"# {found.images} images: {formats}",
        f"# width {_span(found, 0)}, height {_span(found, 1)} px (min / median / max)",
        f"# most common: {common}" + (f"; and {rest} other sizes" if rest else ""),
        f"# of {found.pixels} pixels" + (" in full size" if model is None else f", resized and cropped as for {model}"),
        "[transform]",
        f"mean = [{', '.join(f'{value:.6f}' for value in found.mean)}]",
        f"std = [{', '.join(f'{value:.6f}' for value in found.std)}]",
    ]


def _span(found: Survey, axis: int) -> str:
    least, middle, most = _least_median_most(found, axis)
    return f"{least} / {middle:g} / {most}"


def _least_median_most(found: Survey, axis: int) -> tuple[int, float, int]:
    """Return figures of the widths (`axis` 0) or heights (1)."""
    sides: Counter[int] = Counter()
    for size, times in found.sizes.items():
        sides[size[axis]] += times
    return min(sides), median(sorted(sides.elements())), max(sides)


def _as_dict(found: Survey, model: str | None, *, complete: bool) -> dict[str, Any]:
    """Return all results for JSON. `complete` says that no file was skipped."""
    figures = ("least", "median", "most")
    return {
        "complete": complete,
        "images": found.images,
        "pixels": found.pixels,
        "as_served": model,
        "mean": found.mean,
        "std": found.std,
        "formats": dict(found.formats.most_common()),
        "width": dict(zip(figures, _least_median_most(found, 0), strict=True)),
        "height": dict(zip(figures, _least_median_most(found, 1), strict=True)),
        "sizes": [
            {"width": width, "height": height, "images": times} for (width, height), times in found.sizes.most_common()
        ],
        "broken": [{"path": name(path), "reason": reason} for path, reason in found.broken.items()],
    }
