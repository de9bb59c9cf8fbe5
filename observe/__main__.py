"""`python -m observe`: gradless, Prometheus over it and traffic of every kind, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from observe import traffic
from observe.configuration import configure
from observe.expressions import Expression, all_expressions
from observe.places import DASHBOARDS, ROOT
from observe.processes import NotStartedError, gradless, prometheus, require_prometheus, sending
from observe.prometheus import Prometheus

# The pace of Prometheus here; 15 s where nobody waits in front of it.
_EVERY_S = 2
# For every expression to have data. Rates over five minutes have some after two scrapes.
_PATIENCE_S = 90


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    # SIGINT too: who is started in the background of a shell without job control inherits that it is ignored.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        require_prometheus()
        with tempfile.TemporaryDirectory(prefix="gradless-observe-") as folder:
            _run(Path(folder))
    except (NotStartedError, RuntimeError) as error:
        sys.exit(f"observe: {error}")
    except KeyboardInterrupt:
        _say("ended")


def _run(folder: Path) -> None:
    _say("starting gradless: the first time it converts its model")
    with gradless(folder, traffic.SETTINGS) as address:
        configuration = configure(folder, urlsplit(address).netloc, every_s=_EVERY_S)
        with prometheus(folder, configuration) as watched, sending(address):
            _say(f"gradless    {address}")
            _say(f"Prometheus  {watched.address}")
            _say(f"dashboards  {DASHBOARDS.relative_to(ROOT)}/*.json, for any Grafana with this Prometheus")
            _say("requests of every kind are being sent; Ctrl-C ends it all")
            _say(f"waiting {_PATIENCE_S} s at most for every expression of dashboards, rules and alerts to have data")
            _wait_for_data(watched)
            while True:
                signal.pause()


def _wait_for_data(watched: Prometheus) -> None:
    started_at = time.monotonic()
    expressions = all_expressions("1m")
    empty = expressions
    while empty and time.monotonic() - started_at < _PATIENCE_S:
        time.sleep(_EVERY_S)
        empty = _empty(watched, empty)
    seconds = time.monotonic() - started_at
    for expression in empty:
        _say(f"no data: {expression.asker}: {expression.text}")
    _say(f"{len(expressions) - len(empty)} of {len(expressions)} expressions have data, within {seconds:.0f} s")


def _empty(watched: Prometheus, expressions: list[Expression]) -> list[Expression]:
    return [expression for expression in expressions if not watched.has_numbers(expression.text)]


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - it is for people in front of a terminal


if __name__ == "__main__":
    main()
