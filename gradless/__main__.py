"""The `gradless` command, also as `python -m gradless`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_INSTALLED = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the command, or exit with status 1 if another package hides one of gradless's own."""
    for package in ("app", "models"):
        if (found := _found_elsewhere(package)) is not None:
            # Not the logger: it is set up by the package that is hidden.
            sys.stderr.write(
                f"gradless: {found} hides the package {package!r} of gradless; "
                "start in another folder, or take it off PYTHONPATH\n"
            )
            raise SystemExit(1)
    # Not above: importing a hidden package would fail.
    from app.cli import main as run  # noqa: PLC0415

    run()


def _found_elsewhere(package: str) -> str | None:
    """Return the file that Python imports as `package`, or None if it is installed with this one."""
    spec = find_spec(package)
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] == _INSTALLED:
        return None
    return spec.origin


if __name__ == "__main__":
    main()
