"""Standard input, output and error that a parent process has closed."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Open those that are closed on /dev/null. Otherwise the next file or socket gets such a number, and whatever is
    written to stderr goes to it."""
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
