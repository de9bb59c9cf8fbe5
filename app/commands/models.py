"""`gradless models`: list model names, and create and check model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.commands.conventions import end, failures_reported, note, settings_for

_MISCLASSIFIED = 1

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the model folder", show_default=False)]


class _ListsByDefault(TyperGroup):
    """`gradless models` and `gradless models 'timm/*'` list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        said = args[:1] == ["--help"] or any(args[:1] == [command] for command in self.commands)
        return super().parse_args(ctx, args if said else ["list", *args])


models = typer.Typer(
    cls=_ListsByDefault, help="List the names of models; create and check folders for your own models."
)


@models.command("list")
def list_names(
    pattern: Annotated[str | None, typer.Argument(help="list matching names, such as 'timm/resnet*'")] = None,
) -> None:
    """List the names for GRADLESS_MODELS. All but the default also exist as NAME:random, with seeded random weights.

    The models of timm are listed only with a pattern. Exit status: 0; 1 if nothing matches.
    """
    from models.loading.catalog import names  # noqa: PLC0415

    found = names(pattern)
    for name in found:
        typer.echo(name)
    if pattern is None:
        note("timm's models can be served as well: gradless models 'timm/*' lists them")
    elif not found:
        end(f"no name matches {pattern!r}", 1)


@models.command()
def init(
    folder: Folder,
    *,
    architecture: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="a name of torchvision, timm/NAME or module:callable; default: detected"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="the checkpoint in DIR, if there are several")
    ] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="pixels of the shorter side, as in validation")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="pixels of the square that the network gets")] = None,
) -> None:
    """Write a model.toml into a folder with a checkpoint: the architecture that fits its tensors, its number of
    classes, a file of labels if there is one, and comments on other keys. Nothing is overwritten.

    Exit status: 0 written; 2 failed.
    """
    # Not above: importing torch takes seconds.
    from models.loading.catalog import refuse_file  # noqa: PLC0415
    from models.model_folder.writing import start  # noqa: PLC0415

    with failures_reported(str(folder)):
        refuse_file(folder)
        started = start(folder, architecture=architecture, weights=weights, resize=resize, crop=crop)
    classes = "" if started.classes is None else f", {started.classes} classes"
    labels = "no file of labels" if started.labels is None else f"labels in {started.labels}"
    typer.echo(f"{started.file}: {started.architecture}{classes}, weights in {started.weights}, {labels}")
    transform = started.transform
    typer.echo(
        f"It assumes interpolation {transform.interpolation}, resize {transform.resize}, crop {transform.crop}. Check "
        "that its [transform] is that of your validation: it is not stored in the weights."
    )
    if started.labels is None:
        typer.echo(
            "A labels.txt, one class a line with class 0 first, may be added later: then remove the # before `labels` "
            f"in {started.file.name}."
        )
    typer.echo(f"Then: gradless models check {folder}")


@models.command()
def check(
    folder: Folder,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="an image, of which the five most probable classes are printed")
    ] = None,
) -> None:
    """Load and warm up a model folder with the GRADLESS_ settings, describe it, and classify its reference image.

    Exit status: 0 it can be served; 1 the reference image gets another answer; 2 it cannot be served.
    """
    from app.commands.checking import checked, show  # noqa: PLC0415 - as above

    # As a path, even if a model has that name.
    settings = settings_for(str(folder) if folder.is_absolute() else f"./{folder}")
    with failures_reported(str(folder)):
        findings = checked(folder, settings, image)
    show(findings)
    if findings.fault is not None:
        end(findings.fault, _MISCLASSIFIED)
