"""`gradless compare`: run the lens without a server, for people and for continuous integration."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from app.commands.conventions import FAILED, STDOUT, Json, end, failures_reported, settings_for, write_report
from app.settings import Settings
from gradless.records import ARMS, ArmName, Comparison, ComparisonOptions
from gradless.units import in_bytes

# More than over HTTP, because no requests wait for the device.
_MAX_BATCH_SIZE = 1024
_MAX_ITERATIONS = 1000

_RETAINS = 1

_CLOSE_TIMEOUT_S = 30.0


def compare(
    model: Annotated[str | None, typer.Argument(help="a name of `gradless models`; the default without it")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=_MAX_BATCH_SIZE, help="images in the forward")] = 32,
    iterations: Annotated[int, typer.Option(min=1, max=_MAX_ITERATIONS, help="most timed forwards per arm")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="time limit of the rounds, and again of the sweep")] = 45.0,
    arms: Annotated[str, typer.Option(help="arms to compare, separated by commas")] = ",".join(ARMS),
    sweep: Annotated[str, typer.Option(help="further batch sizes, such as 1,2,4,8")] = "",
    image: Annotated[Path | None, typer.Option(help="image to compare on; random pixels without it")] = None,
    json: Json = None,
    html: Annotated[Path | None, typer.Option(help="file for the report as a page with charts")] = None,
    fail_on_retained: Annotated[
        bool, typer.Option("--fail-on-retained", help="exit with 1 if the served model keeps a byte for backward")
    ] = False,
) -> None:
    """Show what gradients cost: run one batch in every autograd mode, and as it is served.

    The GRADLESS_ settings give device, precision and backend of the served model.

    Exit status: 0 compared; 1 the served model retains memory, with --fail-on-retained; 2 not compared.
    """
    options = ComparisonOptions(
        arms=_arms(arms, gate=fail_on_retained),
        batch_size=batch_size,
        iterations=iterations,
        sweep=_sizes(sweep),
        seconds=seconds,
    )
    settings = settings_for(model)
    encoded = _read(image)
    with failures_reported("the report"):
        comparison = _compared(settings, options, encoded)
        _report(comparison, json, html)
    if fail_on_retained:
        _fail_if_retained(comparison)


def _arms(text: str, *, gate: bool) -> tuple[ArmName, ...]:
    known = {str(arm): arm for arm in ARMS}
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if wrong := [name for name in names if name not in known]:
        end(f"--arms: there is no {wrong[0]!r}; there is {', '.join(ARMS)}", FAILED)
    if not names:
        end("--arms: at least one is needed", FAILED)
    if gate and "served" not in names:
        end("--fail-on-retained needs the arm served, which --arms leaves out", FAILED)
    return tuple(known[name] for name in names)


def _sizes(text: str) -> tuple[int, ...]:
    sizes: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not part.isdecimal() or not 1 <= int(part) <= _MAX_BATCH_SIZE:
            end(f"--sweep: {part!r} is no batch size from 1 to {_MAX_BATCH_SIZE}", FAILED)
        sizes.append(int(part))
    return tuple(sizes)


def _read(image: Path | None) -> bytes | None:
    try:
        return None if image is None else image.read_bytes()
    except OSError as error:
        end(f"{image} cannot be read: {error.strerror}", FAILED)


def _compared(settings: Settings, options: ComparisonOptions, image: bytes | None) -> Comparison:
    # Not above: the imports are slow.
    from rich.console import Console  # noqa: PLC0415

    from app.main import start_serving  # noqa: PLC0415
    from app.reports.progress import comparison_progress  # noqa: PLC0415
    from app.reports.terminal import waiting  # noqa: PLC0415
    from models.interface.telemetry import Telemetry  # noqa: PLC0415

    console = Console(stderr=True)
    with waiting(console, f"loading {settings.models[0]}"):
        runtime = start_serving(settings, Telemetry())
    try:
        with comparison_progress(console) as on_progress:
            return asyncio.run(runtime.compare(None, options, image, on_progress))
    finally:
        runtime.close(_CLOSE_TIMEOUT_S)


def _report(comparison: Comparison, json: Path | None, html: Path | None) -> None:
    from app.api.schemas import GradModes  # noqa: PLC0415 - as above
    from app.reports.pages import comparison_page  # noqa: PLC0415
    from app.reports.terminal import PatientConsole, show_comparison  # noqa: PLC0415

    report = GradModes.model_validate(comparison)
    # JSON on stdout moves the report to stderr.
    show_comparison(report, PatientConsole(stderr=json == STDOUT, highlight=False))
    if json is not None:
        write_report(json, report.model_dump_json(indent=2) + "\n")
    if html is not None:
        write_report(html, comparison_page(report))


def _fail_if_retained(comparison: Comparison) -> None:
    served = next((report for report in comparison.arms if report.arm == "served"), None)
    if served is None:
        end(f"the served model could not be run: {comparison.left_out[-1].reason}", FAILED)
    if served.retained_bytes or served.output.requires_grad:
        end(f"the served model keeps {in_bytes(served.retained_bytes)} for a backward pass that never runs", _RETAINS)
