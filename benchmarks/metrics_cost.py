"""Measure the cost of metrics: `python -m benchmarks.metrics_cost`.

Scrapes a real server of the null model with 1, 4 and 16 models, and compares the cost of recording a request with that
of the whole request. Prints tables of CPU times, which depend less on other load than wall-clock times.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from time import process_time
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
from PIL import Image

from app.observability.metrics import Metrics
from benchmarks.markdown import over_rounds, percent, table
from benchmarks.statistic import spread
from models.interface.telemetry import BatchReport, InstanceId, StageSeconds
from observe.processes import gradless_process

MODELS = (1, 2, 4, 8, 16)

# The request of Prometheus.
_OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
_RECORDINGS = 20_000


class Scrapes(NamedTuple):
    """Number of models, time series, bytes of one scrape, and its CPU time in ms for each round."""

    models: int
    series: int
    size: int
    milliseconds: list[float]


class Server:
    """A server at `address` and its CPU time."""

    def __init__(self, address: str, process_id: int) -> None:
        url = urlsplit(address)
        self._connection = HTTPConnection(url.hostname or "", url.port, timeout=60)
        self._process = psutil.Process(process_id)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        """Send a request. Raises RuntimeError unless the answer is a success."""
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status not in {200, 201}:
            raise RuntimeError(f"{method} {path}: {answer.status} {content!r}")
        return content

    def seconds_each(self, call: Callable[[], object], calls: int) -> float:
        """Return the server's CPU seconds for one of `calls` calls."""
        before = self._process.cpu_times()
        for _ in range(calls):
            call()
        after = self._process.cpu_times()
        return float(after.user + after.system - before.user - before.system) / calls


def measure_scrapes(server: Server, *, calls: int, rounds: int) -> list[Scrapes]:
    """Scrape a server of one model while further models are loaded."""
    found = []
    loaded = 1

    def scrape() -> bytes:
        return server.send("GET", "/metrics", headers=_OPENMETRICS)

    for models in MODELS:
        while loaded < models:
            loaded += 1
            server.send(
                "POST", f"/v1/models/null-{loaded}", b'{"source": "null"}', {"Content-Type": "application/json"}
            )
        exposition = scrape()
        series = sum(not line.startswith(b"#") for line in exposition.splitlines())
        times = [1e3 * server.seconds_each(scrape, calls) for _ in range(rounds)]
        found.append(Scrapes(models, series, len(exposition), times))
    return found


def measure_recording(rounds: int) -> list[float]:
    """Return the CPU time in seconds of recording one request with one image."""
    metrics = Metrics()
    metrics.model_served("null", ["cpu"])
    instance = InstanceId("null", "cpu")
    batch = BatchReport(instance, 1, "idle", started_at=0.0, forward_seconds=0.01, busy_seconds=0.01, dropped=0)
    spent = StageSeconds(decode=0.001, queue=0.001, forward=0.01)

    def record() -> None:
        metrics.batch_ran(batch)
        metrics.image_took(instance, spent)
        metrics.images_done("null", "classify", "ok")
        metrics.request_stages("null", 0.001, 0.001)
        metrics.request_done("/v1/classify", "POST", 200, 0.02, "0123456789abcdef")

    return [_seconds_each(record, _RECORDINGS) for _ in range(rounds)]


def report(scrapes: Sequence[Scrapes], requests: list[float], recording: list[float]) -> list[str]:
    """Return the lines of both tables. `requests` and `recording` are in seconds."""
    rows = [
        (f"{each.models}", f"{each.series:,}", f"{each.size / 1e3:.0f}", over_rounds(each.milliseconds))
        for each in scrapes
    ]
    share = spread(recording).median / spread(requests).median
    of_one = [
        ("the whole of it", over_rounds(1e6 * seconds for seconds in requests)),
        ("all that is recorded of it", over_rounds(1e6 * seconds for seconds in recording)),
        ("the share of the latter", percent(share)),
    ]
    return [
        *table(("models", "time series", "kB a scrape", "CPU ms a scrape"), rows),
        "",
        *table(("one request with one image of 8 x 8", "CPU µs"), of_one),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics_cost", description=__doc__)
    parser.add_argument("--scrapes", type=int, default=300, help="in a round")
    parser.add_argument("--requests", type=int, default=2000, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    # Without sharing, because shared expositions cost almost nothing.
    settings = {"GRADLESS_MODELS": "null", "GRADLESS_METRICS_MAX_AGE_S": "0"}
    with (
        tempfile.TemporaryDirectory(prefix="gradless-metrics-") as folder,
        gradless_process(Path(folder), settings) as running,
        closing(Server(running.address, running.process.pid)) as server,
    ):
        picture = _picture()

        def classify() -> bytes:
            return server.send("POST", "/v1/classify?top_k=1", picture)

        requests = [server.seconds_each(classify, options.requests) for _ in range(options.rounds)]
        scrapes = measure_scrapes(server, calls=options.scrapes, rounds=options.rounds)
    print("\n".join(report(scrapes, requests, measure_recording(options.rounds))))  # noqa: T201 - the output


def _seconds_each(call: Callable[[], object], calls: int) -> float:
    before = process_time()
    for _ in range(calls):
        call()
    return (process_time() - before) / calls


def _picture() -> bytes:
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
