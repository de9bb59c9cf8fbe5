"""How a command over images ends when it cannot do what it was asked: one line on stderr, and a status that says which
of the few ways it was."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from app.settings import Settings, SettingsError, load_settings
from models.interface.errors import GradlessError

# Done, but some files were no images, and --strict minds.
UNREADABLE = 1
FAILED = 2
INTERRUPTED = 130


def end(message: str, status: int) -> NoReturn:
    """End the process, each line of `message` on stderr behind the command's name."""
    for line in message.splitlines():
        typer.echo(f"gradless: {line}", err=True)
    raise typer.Exit(status) from None


def settings_for(model: str | None) -> Settings:
    """The settings of the environment with one model, their first unless it is named. Ends the process where they are
    wrong."""
    try:
        settings = load_settings()
    except SettingsError as error:
        end(str(error), FAILED)
    # One of them is enough, and the others need not be loaded.
    return settings.model_copy(update={"models": (settings.models[0] if model is None else model,)})


@contextmanager
def failures_said(what: str) -> Iterator[None]:
    """Whatever goes wrong within ends the process with one line; an error of the system's is of `what`, or of the file
    that it names. With GRADLESS_LOG_LEVEL=debug an error that nobody has foreseen also says where it is from."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        # The line has been said.
        raise
    except GradlessError as error:
        end(" ".join(str(error).split()), FAILED)
    except OSError as error:
        reason = str(error) if error.errno is None else os.strerror(error.errno)
        end(f"{error.filename or what} cannot be written: {reason}", FAILED)
    except Exception as error:  # noqa: BLE001 - PyTorch's, pyarrow's: of every kind
        if os.environ.get("GRADLESS_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        end(" ".join(f"{type(error).__name__}: {error}".split()), FAILED)
