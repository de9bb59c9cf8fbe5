"""What the commands share: options, settings with one model, reports as files, and how a command ends."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.settings import Settings, SettingsError, load_settings
from models.interface.errors import GradlessError

# Finished, but with --strict an unreadable file is a failure.
UNREADABLE = 1
FAILED = 2
INTERRUPTED = 130

STDOUT = Path("-")

# Reading so few takes less time than starting a worker.
_FEW_FILES = 128

Json = Annotated[Path | None, typer.Option(help="file for the report as JSON; - is stdout")]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="a name of `gradless models`; default: the first of GRADLESS_MODELS")
]
BatchSize = Annotated[int, typer.Option(min=1, max=1024, help="images per forward")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, max=256, help="processes that read files; default: one per core, none for few files"),
]
Strict = Annotated[bool, typer.Option("--strict", help="exit with 1 if a file could not be read")]


def workers_for(files: int) -> int:
    """Return the default number of processes that read that many files."""
    from models.hardware.cores import available_cores  # noqa: PLC0415 - torch takes seconds to import

    return 0 if files <= _FEW_FILES else available_cores()


def settings_for(model: str | None) -> Settings:
    """Return the settings with one model: `model`, or their first one. End the process if they are invalid."""
    try:
        settings = load_settings()
    except SettingsError as error:
        end(str(error), FAILED)
    # Load only this one.
    return settings.model_copy(update={"models": (settings.models[0] if model is None else model,)})


def write_report(file: Path, text: str) -> None:
    """Write `text` to a file or to STDOUT, whose reader may have closed it. Raises OSError."""
    from app.reports.terminal import discard_stdout  # noqa: PLC0415 - the import is slow

    if file != STDOUT:
        file.write_text(text, encoding="utf-8")
        return
    try:
        typer.echo(text, nl=False)
    except BrokenPipeError:
        discard_stdout()


def note(message: str) -> None:
    """Print a line to stderr after the command's name."""
    typer.echo(f"gradless: {message}", err=True)


def end(message: str, status: int) -> NoReturn:
    """End the process with `status`, and print each line of `message` to stderr after the command's name."""
    for line in message.splitlines():
        note(line)
    raise typer.Exit(status) from None


@contextmanager
def failures_reported(what: str) -> Iterator[None]:
    """End the process with one line if the block raises. An OSError without a file name is attributed to `what`.

    With GRADLESS_LOG_LEVEL=debug an unexpected error also prints its traceback. Ctrl-C ends it without a line.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        # The line is already printed.
        raise
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except GradlessError as error:
        end(" ".join(str(error).split()), FAILED)
    except OSError as error:
        reason = str(error) if error.errno is None else os.strerror(error.errno)
        end(f"{error.filename or what} cannot be written: {reason}", FAILED)
    except Exception as error:  # noqa: BLE001 - PyTorch and pyarrow raise many types
        if os.environ.get("GRADLESS_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        end(" ".join(f"{type(error).__name__}: {error}".split()), FAILED)
