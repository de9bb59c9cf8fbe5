"""How commands end when they fail: one line on stderr, and an exit status."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from app.settings import Settings, SettingsError, load_settings
from models.interface.errors import GradlessError

# Finished, but with --strict an unreadable file is a failure.
UNREADABLE = 1
FAILED = 2
INTERRUPTED = 130


def end(message: str, status: int) -> NoReturn:
    """End the process with `status`, and print each line of `message` to stderr after the command's name."""
    for line in message.splitlines():
        typer.echo(f"gradless: {line}", err=True)
    raise typer.Exit(status) from None


def settings_for(model: str | None) -> Settings:
    """Return the settings with one model: `model`, or their first one. End the process if they are invalid."""
    try:
        settings = load_settings()
    except SettingsError as error:
        end(str(error), FAILED)
    # Load only this one.
    return settings.model_copy(update={"models": (settings.models[0] if model is None else model,)})


@contextmanager
def failures_reported(what: str) -> Iterator[None]:
    """End the process with one line if the block raises. An OSError without a file name is attributed to `what`.

    With GRADLESS_LOG_LEVEL=debug an unexpected error also prints its traceback.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        # The line is already printed.
        raise
    except GradlessError as error:
        end(" ".join(str(error).split()), FAILED)
    except OSError as error:
        reason = str(error) if error.errno is None else os.strerror(error.errno)
        end(f"{error.filename or what} cannot be written: {reason}", FAILED)
    except Exception as error:  # noqa: BLE001 - PyTorch and pyarrow raise many types
        if os.environ.get("GRADLESS_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        end(" ".join(f"{type(error).__name__}: {error}".split()), FAILED)
