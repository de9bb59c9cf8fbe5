"""`python -m observe`: run gradless, Prometheus and traffic of every kind until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from observe import DASHBOARDS, ROOT, traffic
from observe.configuration import Expression, all_expressions, configure
from observe.processes import NotStartedError, gradless, prometheus, require_prometheus, sending
from observe.prometheus import Prometheus

# Scrape interval; 15 s in production.
_INTERVAL_S = 2
# Time for every expression to have data. Rates over five minutes have some after two scrapes.
_DATA_TIMEOUT_S = 240


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    # SIGINT too: shells without job control start background processes with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        require_prometheus()
        with tempfile.TemporaryDirectory(prefix="gradless-observe-") as folder:
            _run(Path(folder))
    except (NotStartedError, RuntimeError) as error:
        sys.exit(f"observe: {error}")
    except KeyboardInterrupt:
        _say("stopped")


def _run(folder: Path) -> None:
    _say("starting gradless; the first start converts the model")
    with gradless(folder, traffic.SETTINGS) as address:
        configuration = configure(folder, urlsplit(address).netloc, interval_s=_INTERVAL_S)
        with prometheus(folder, configuration) as server, sending(address):
            _say(f"gradless    {address}")
            _say(f"Prometheus  {server.address}")
            _say(f"dashboards  {DASHBOARDS.relative_to(ROOT)}/*.json, for a Grafana with this Prometheus")
            _say("sending requests of every kind; Ctrl-C stops everything")
            _say(f"waiting up to {_DATA_TIMEOUT_S} s for data of every expression of dashboards, rules and alerts")
            _wait_for_data(server)
            while True:
                signal.pause()


def _wait_for_data(server: Prometheus) -> None:
    started_at = time.monotonic()
    expressions = all_expressions("1m")
    empty = expressions
    while empty and time.monotonic() - started_at < _DATA_TIMEOUT_S:
        time.sleep(_INTERVAL_S)
        empty = _empty(server, empty)
    seconds = time.monotonic() - started_at
    for expression in empty:
        _say(f"no data: {expression.source}: {expression.text}")
    _say(f"{len(expressions) - len(empty)} of {len(expressions)} expressions have data, within {seconds:.0f} s")


def _empty(server: Prometheus, expressions: list[Expression]) -> list[Expression]:
    return [expression for expression in expressions if not server.has_numbers(expression.text)]


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - output for a terminal


if __name__ == "__main__":
    main()
