"""`gradless compare`: run the lens without a server, for people and for continuous integration."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app.settings import Settings, SettingsError, load_settings
from gradless.records import ARMS, ArmName, Comparison, ComparisonOptions
from gradless.units import in_bytes
from models.interface.errors import GradlessError

if TYPE_CHECKING:
    from rich.console import Console


# More than over HTTP, because no requests wait for the device.
_MAX_BATCH_SIZE = 1024
_MAX_ITERATIONS = 1000

_RETAINS, _FAILED, _INTERRUPTED = 1, 2, 130

_CLOSE_TIMEOUT_S = 30.0

_STDOUT = Path("-")


class CompareError(Exception):
    """The comparison failed, or its report could not be written. Each line of the message is one problem."""


def compare(
    model: Annotated[str | None, typer.Argument(help="a name of `gradless models`; the default without it")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=_MAX_BATCH_SIZE, help="images in the forward")] = 32,
    iterations: Annotated[int, typer.Option(min=1, max=_MAX_ITERATIONS, help="most timed forwards per arm")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="time limit of the rounds, and again of the sweep")] = 45.0,
    arms: Annotated[str, typer.Option(help="arms to compare, separated by commas")] = ",".join(ARMS),
    sweep: Annotated[str, typer.Option(help="further batch sizes, such as 1,2,4,8")] = "",
    image: Annotated[Path | None, typer.Option(help="image to compare on; random pixels without it")] = None,
    json: Annotated[Path | None, typer.Option(help="file for the report as JSON; - is stdout")] = None,
    html: Annotated[Path | None, typer.Option(help="file for the report as a page with charts")] = None,
    fail_on_retained: Annotated[
        bool, typer.Option("--fail-on-retained", help="exit with 1 if the served model keeps a byte for backward")
    ] = False,
) -> None:
    """Show what gradients cost: run one batch in every autograd mode, and as it is served.

    The GRADLESS_ settings give device, precision and backend of the served model.

    Exit status: 0 compared; 1 the served model retains memory, with --fail-on-retained; 2 not compared.
    """
    # Not above: the import is slow.
    from rich.console import Console  # noqa: PLC0415

    try:
        options = ComparisonOptions(
            arms=_arms(arms, gate=fail_on_retained),
            batch_size=batch_size,
            iterations=iterations,
            sweep=_sizes(sweep),
            seconds=seconds,
        )
        comparison = _compared(_settings(model), options, _read(image), Console(stderr=True))
        _report(comparison, json, html)
    except CompareError as error:
        _end(str(error), _FAILED)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    if fail_on_retained:
        _fail_if_retained(comparison)


def _end(message: str, status: int) -> NoReturn:
    for line in message.splitlines():
        typer.echo(f"gradless: {line}", err=True)
    raise typer.Exit(status) from None


def _arms(text: str, *, gate: bool) -> tuple[ArmName, ...]:
    known = {str(arm): arm for arm in ARMS}
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if wrong := [name for name in names if name not in known]:
        raise CompareError(f"--arms: there is no {wrong[0]!r}; there is {', '.join(ARMS)}")
    if not names:
        raise CompareError("--arms: at least one is needed")
    if gate and "served" not in names:
        raise CompareError("--fail-on-retained needs the arm served, which --arms leaves out")
    return tuple(known[name] for name in names)


def _sizes(text: str) -> tuple[int, ...]:
    sizes: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not part.isdecimal() or not 1 <= int(part) <= _MAX_BATCH_SIZE:
            raise CompareError(f"--sweep: {part!r} is no batch size from 1 to {_MAX_BATCH_SIZE}")
        sizes.append(int(part))
    return tuple(sizes)


def _settings(model: str | None) -> Settings:
    try:
        settings = load_settings()
    except SettingsError as error:
        raise CompareError(str(error)) from error
    # Load only this one.
    return settings.model_copy(update={"models": (settings.models[0] if model is None else model,)})


def _read(image: Path | None) -> bytes | None:
    try:
        return None if image is None else image.read_bytes()
    except OSError as error:
        raise CompareError(f"{image} cannot be read: {error.strerror}") from error


def _compared(settings: Settings, options: ComparisonOptions, image: bytes | None, console: Console) -> Comparison:
    from app.main import start_serving  # noqa: PLC0415
    from app.reports.progress import comparison_progress  # noqa: PLC0415
    from app.reports.terminal import waiting  # noqa: PLC0415
    from models.interface.telemetry import Telemetry  # noqa: PLC0415

    try:
        with waiting(console, f"loading {settings.models[0]}"):
            serving = start_serving(settings, Telemetry())
        try:
            with comparison_progress(console) as on_progress:
                return asyncio.run(serving.compare(None, options, image, on_progress))
        finally:
            serving.close(_CLOSE_TIMEOUT_S)
    except GradlessError as error:
        raise CompareError(" ".join(str(error).split())) from error


def _report(comparison: Comparison, json: Path | None, html: Path | None) -> None:
    from app.api.schemas import GradModes  # noqa: PLC0415
    from app.reports.lens_page import page  # noqa: PLC0415
    from app.reports.lens_terminal import show  # noqa: PLC0415
    from app.reports.terminal import PatientConsole  # noqa: PLC0415

    report = GradModes.model_validate(comparison)
    # JSON on stdout moves the report to stderr.
    show(report, PatientConsole(stderr=json == _STDOUT, highlight=False))
    if json is not None:
        _write(json, report.model_dump_json(indent=2) + "\n")
    if html is not None:
        _write(html, page(report))


def _write(path: Path, text: str) -> None:
    from app.reports.terminal import discard_stdout  # noqa: PLC0415

    if path == _STDOUT:
        try:
            typer.echo(text, nl=False)
        except BrokenPipeError:
            discard_stdout()
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CompareError(f"{path} cannot be written: {error.strerror}") from error


def _fail_if_retained(comparison: Comparison) -> None:
    for report in comparison.arms:
        if report.arm == "served":
            if report.retained_bytes or report.output.requires_grad:
                kept = in_bytes(report.retained_bytes)
                _end(f"the served model keeps {kept} for a backward pass that never runs", _RETAINS)
            return
    _end(f"the served model could not be run: {comparison.left_out[-1].reason}", _FAILED)
