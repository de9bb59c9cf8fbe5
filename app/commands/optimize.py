"""`gradless optimize`: a model made smaller or faster, as a new model folder with a report."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.failing import FAILED, INTERRUPTED, end, failures_said, settings_for

if TYPE_CHECKING:
    from app.settings import Settings
    from models.optimizing.job import Wanted
    from models.optimizing.report import Report

# Made, and it agrees less than --min-agreement.
DISAGREES = 1

_RATIO = 0.1

# The module that each needs, and the extra that brings it.
_NEEDED = {"prune": ("torch_pruning", "optimize"), "int8": ("nncf", "int8"), "bf16": ("torch", "optimize")}


class _Method(StrEnum):
    PRUNE = "prune"
    INT8 = "int8"
    BF16 = "bf16"


def optimize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, or a name of `gradless models`")],
    method: Annotated[_Method, typer.Option(help="what to do to it")],
    images: Annotated[Path, typer.Option(metavar="FOLDER", help="images of the kind that it will see, some hundred")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="NEWDIR", help="model folder to write")],
    *,
    ratio: Annotated[
        float | None, typer.Option(min=0.01, max=0.9, help=f"share of the channels to prune; {_RATIO} without it")
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="share of images that must keep their likeliest class")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="images in a forward")] = 32,
    rounds: Annotated[int, typer.Option(min=2, max=1000, help="timed forwards of each model")] = 15,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="processes that read files; one for each core without it")
    ] = None,
) -> None:
    """Make a model smaller or faster, and say what that costs on your own images.

    prune takes out the channels that matter least to its answers on your images, and estimates BatchNorm's statistics
    on them anew. Nothing is trained: accuracy drops, soon by a lot, and fine-tuning what is left is yours to do. int8
    quantizes weights and activations for OpenVINO on CPUs. bf16 keeps weights in 16 bits, and computes in them.

    NEWDIR is a model folder with report.json: agreement with the original, or accuracy where FOLDER has a folder for
    each class, images/s and bytes of both. MODEL is not changed. Device and backend are those of the GRADLESS_
    settings.

    Exit status: 0 written; 1 not written, it agrees less than --min-agreement; 2 not done; 130 interrupted.
    """
    if ratio is not None and method != _Method.PRUNE:
        end("--ratio goes with --method prune", FAILED)
    needed, extra = _NEEDED[method]
    if importlib.util.find_spec(needed) is None:
        end(f"--method {method} needs {needed}: pip install 'gradless[{extra}]'", FAILED)
    # Here, not above: other commands need not wait for torch.
    from models.hardware.cores import available_cores  # noqa: PLC0415 - torch takes seconds to import
    from models.optimizing.job import Wanted  # noqa: PLC0415

    settings = settings_for(model)
    wanted = Wanted(
        model=model,
        method=method.value,
        images=images,
        output=output,
        ratio=_RATIO if ratio is None else ratio,
        min_agreement=min_agreement,
        batch_size=batch_size,
        rounds=rounds,
        workers=available_cores() if workers is None else workers,
        max_bytes=settings.max_image_bytes,
        command=shlex.join(["gradless", *sys.argv[1:]]),
    )
    try:
        with failures_said(str(output)):
            report, kept = _made(wanted, settings)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    _tell(report, wanted, kept=kept)


def _made(wanted: Wanted, settings: Settings) -> tuple[Report, bool]:
    from rich.console import Console  # noqa: PLC0415 - as above

    from app.main import serving_options  # noqa: PLC0415
    from models.optimizing.job import Optimization, Watching  # noqa: PLC0415

    with Console(stderr=True).status("finding images …") as status:
        watching = Watching(
            stage=lambda what: status.update(f"{what} …"),
            compared=lambda done, total: status.update(f"comparing answers, {done} of {total} images …"),
        )
        return Optimization(wanted, serving_options(settings), watching).run()


def _tell(report: Report, wanted: Wanted, *, kept: bool) -> None:
    from app.reports.optimize_terminal import show  # noqa: PLC0415
    from app.reports.terminal import PatientConsole  # noqa: PLC0415

    show(report, PatientConsole(highlight=False))
    if not kept:
        end(
            f"{wanted.output} is not written: {report.agreement.top1:.1%} of the images keep their class, "
            f"and --min-agreement asks for {wanted.min_agreement:.1%}",
            DISAGREES,
        )
    typer.echo(f"gradless: written to {wanted.output}: GRADLESS_MODELS={wanted.output} gradless serve", err=True)
