"""`gradless compare`: run the lens without a server, for people and for continuous integration."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.conventions import FAILED, STDOUT, Json, end, failures_reported, note, settings_for, write_report
from app.settings import Settings
from gradless.records import ARMS, ArmName, Comparison, ComparisonOptions
from gradless.sentences import in_bytes, time_difference
from models.interface.errors import ComparisonTooLargeError

if TYPE_CHECKING:
    from rich.console import Console

    from models.offline.loop_timing import LoopReport, LoopTimes


# More than over HTTP, because no requests wait for the device.
_MAX_BATCH_SIZE = 1024
_MAX_ITERATIONS = 1000

_RETAINS = 1

_CLOSE_TIMEOUT_S = 30.0


def compare(
    model: Annotated[str | None, typer.Argument(help="a name of `gradless models`; the default without it")] = None,
    *,
    batch_size: Annotated[int, typer.Option(min=1, max=_MAX_BATCH_SIZE, help="images in the forward")] = 32,
    iterations: Annotated[int, typer.Option(min=1, max=_MAX_ITERATIONS, help="most timed forwards per arm")] = 12,
    seconds: Annotated[float, typer.Option(min=0, help="time limit of the rounds, and again of the sweep")] = 45.0,
    arms: Annotated[str, typer.Option(help="arms to compare, separated by commas")] = ",".join(ARMS),
    sweep: Annotated[str, typer.Option(help="further batch sizes, such as 1,2,4,8")] = "",
    image: Annotated[Path | None, typer.Option(help="image to compare on; random pixels without it")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="time loops over a DataLoader of these images instead, in grad mode and no_grad")
    ] = None,
    json: Json = None,
    html: Annotated[Path | None, typer.Option(help="file for the report as a page with charts")] = None,
    force: Annotated[bool, typer.Option("--force", help="run even if it is predicted to take too long")] = False,
    fail_on_retained: Annotated[
        bool, typer.Option("--fail-on-retained", help="exit with 1 if the served model keeps a byte for backward")
    ] = False,
) -> None:
    """Show what gradients cost: run one batch in every autograd mode, and as it is served.

    The GRADLESS_ settings give device, precision and backend of the served model.

    Exit status: 0 compared; 1 the served model retains memory, with --fail-on-retained; 2 not compared;
    130 Ctrl-C.
    """
    # Not above: the import is slow.
    from rich.console import Console  # noqa: PLC0415

    options = ComparisonOptions(
        arms=_arms(arms, gate=fail_on_retained),
        batch_size=batch_size,
        iterations=iterations,
        sweep=_sizes(sweep),
        seconds=seconds,
        force=force,
    )
    with failures_reported("the report"):
        if folder is not None:
            if image is not None or html is not None or sweep or fail_on_retained:
                end("--folder goes with neither --image, --html, --sweep nor --fail-on-retained", FAILED)
            _show_loops(_looped(settings_for(model), options, folder, Console(stderr=True)), json)
            return
        comparison = _compared(settings_for(model), options, _read(image), Console(stderr=True))
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


def _compared(settings: Settings, options: ComparisonOptions, image: bytes | None, console: Console) -> Comparison:
    from app.main import start_serving  # noqa: PLC0415
    from app.reports.progress import comparison_progress  # noqa: PLC0415
    from app.reports.terminal import waiting  # noqa: PLC0415
    from models.interface.telemetry import Telemetry  # noqa: PLC0415

    with waiting(console, f"loading {settings.models[0]}"):
        serving = start_serving(settings, Telemetry())
    try:
        with comparison_progress(console) as on_progress:
            return asyncio.run(serving.compare(None, options, image, on_progress))
    except ComparisonTooLargeError as error:
        # Memory that is not there cannot be forced.
        end(str(error) if error.what == "bytes" else f"{error} --force runs it all the same.", FAILED)
    finally:
        serving.close(_CLOSE_TIMEOUT_S)


def _looped(settings: Settings, options: ComparisonOptions, folder: Path, console: Console) -> LoopReport:
    from app.main import serving_options  # noqa: PLC0415
    from app.reports.terminal import waiting  # noqa: PLC0415
    from models import backends  # noqa: PLC0415
    from models.loading import catalog  # noqa: PLC0415
    from models.loading.load import load  # noqa: PLC0415
    from models.offline import files  # noqa: PLC0415
    from models.offline.loop_timing import time_loops  # noqa: PLC0415
    from models.offline.reading import Reading  # noqa: PLC0415

    found = files.find([folder])
    serving = serving_options(settings)
    with waiting(console, f"loading {settings.models[0]}"):
        # As published: in grad mode a backend of its own would record nothing.
        loaded = load(
            catalog.find(settings.models[0]),
            backends.place(serving.device, "fp32", "eager"),
            exact_jpeg=serving.exact_jpeg,
        )
    images = Reading(loaded.transform, serving.limits, settings.max_image_bytes)
    with waiting(console, f"reading {len(found)} images in each loop"):
        return time_loops(
            loaded,
            found,
            images,
            batch_size=options.batch_size,
            rounds=options.iterations,
            seconds=options.seconds,
        )


def _show_loops(report: LoopReport, file: Path | None) -> None:
    from app.reports.terminal import PatientConsole  # noqa: PLC0415

    def difference(times: LoopTimes) -> str:
        return time_difference(times.with_gradients, times.without, times.verdict, report.rounds)

    whole, forward = report.end_to_end, report.forward
    unreadable = f"; not read: {report.unreadable}" if report.unreadable else ""
    measured = (
        f"{report.model}, {report.images} images in batches of {report.batch_size}, medians of {report.rounds} "
        f"round{'s' * (report.rounds != 1)} of reading, decoding and forwards{unreadable}"
    )
    lines = (
        f"With gradient calculation: {whole.with_gradients:.3f} s",
        f"Without: {whole.without:.3f} s",
        f"Difference: {difference(whole)}",
        f"Forwards alone: {forward.with_gradients:.3f} s and {forward.without:.3f} s: {difference(forward)}",
        measured,
    )
    console = PatientConsole(stderr=file == STDOUT, highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if file is not None:
        write_report(file, json.dumps(asdict(report), indent=2) + "\n")


def _report(comparison: Comparison, json: Path | None, html: Path | None) -> None:
    from app.api.schemas import GradModes  # noqa: PLC0415
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
    for report in comparison.arms:
        if report.arm == "served":
            if report.retained_bytes or report.output.requires_grad:
                kept = "memory" if report.retained_bytes is None else in_bytes(report.retained_bytes)
                end(f"the served model keeps {kept} for a backward pass that never runs", _RETAINS)
            if report.retained_bytes is None:
                note(f"what the served model keeps could not be observed: {report.retained_note}")
            return
    reason = next(each.reason for each in comparison.left_out if each.arm == "served")
    end(f"the served model could not be run: {reason}", FAILED)
