"""`gradless optimize`: make a model smaller or faster, as a new model folder with a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.commands.conventions import FAILED, BatchSize, end, failures_reported, note, settings_for
from models.interface.extras import install_command, installed

# The new model agrees less than --min-agreement.
DISAGREES = 1

_RATIO = 0.1

# Required module of each method, and the extra that installs it.
_NEEDED = {"prune": ("torch_pruning", "optimize"), "int8": ("nncf", "int8"), "bf16": ("torch", "optimize")}


def optimize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, or a name of `gradless models`")],
    method: Annotated[Literal["prune", "int8", "bf16"], typer.Option(help="how to optimize it")],
    images: Annotated[Path, typer.Option(metavar="FOLDER", help="some hundred images like those of production")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="NEWDIR", help="model folder to write")],
    *,
    ratio: Annotated[
        float | None, typer.Option(min=0.01, max=0.9, help=f"share of the channels to prune; default {_RATIO}")
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="share of images that must keep their top class")
    ] = 0.0,
    batch_size: BatchSize = 32,
    rounds: Annotated[int, typer.Option(min=2, max=1000, help="timed forwards of each model")] = 15,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="processes that read files; default: one per core")
    ] = None,
) -> None:
    """Make a model smaller or faster, and measure what that costs on your own images.

    prune removes the channels that matter least for your images, and recomputes the BatchNorm statistics on them.
    Nothing is trained: accuracy drops, quickly with a larger ratio, until you fine-tune the result. int8 quantizes
    weights and activations for OpenVINO on CPUs. bf16 stores weights in 16 bits and computes in them.

    NEWDIR is a model folder with report.json: agreement with the original, accuracy if FOLDER has one folder per class,
    images/s and bytes of both. MODEL is not changed. The GRADLESS_ settings give device and backend.

    Exit status: 0 written; 1 not written, it agrees less than --min-agreement; 2 failed; 130 interrupted.
    """
    if ratio is not None and method != "prune":
        end("--ratio needs --method prune", FAILED)
    needed, extra = _NEEDED[method]
    if not installed(needed):
        end(f"--method {method} needs {needed}: {install_command(extra)}", FAILED)
    # Not above: the imports take seconds.
    from rich.console import Console  # noqa: PLC0415

    from app.main import serving_options  # noqa: PLC0415
    from app.reports.terminal import PatientConsole, show_optimization  # noqa: PLC0415
    from models.hardware.cores import available_cores  # noqa: PLC0415
    from models.optimizing.job import Optimization, OptimizationRequest  # noqa: PLC0415

    settings = settings_for(model)
    request = OptimizationRequest(
        model=model,
        method=method,
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
    with failures_reported(str(output)), Console(stderr=True).status("finding images …") as status:
        options = serving_options(settings)
        report, kept = Optimization(request, options, lambda step: status.update(f"{step} …")).run()
    show_optimization(report, PatientConsole(highlight=False))
    if not kept:
        end(
            f"{output} is not written: {report.agreement.top1:.1%} of the images keep their class, "
            f"but --min-agreement is {min_agreement:.1%}",
            DISAGREES,
        )
    note(f"written to {output}: gradless serve {output}")
