"""Memory growth over many requests: resident size of the null model's server after the first tenth and the last."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.load import closed_loop
from benchmarks.measurement import Measurement
from benchmarks.processes import RunningServer, running
from benchmarks.servers import NULL, NULL_SERVER, SERVERS

_CONNECTIONS = 32
_SERVER = NULL_SERVER

# wrk limits seconds, not requests: run slices until there were enough.
_LEAST_SLICE_S = 1.0
_LONGEST_SLICE_S = 60.0


def measure(requests: int, bench: Bench) -> Iterator[Measurement]:
    """Send at least `requests` requests. Raises ServerFailedError, or RuntimeError if the server stops answering."""
    with running(SERVERS[_SERVER], NULL, bench) as server:
        soaking = _Soaking(server, bench)
        soaking.send_until(requests // 10)
        early_requests, early_bytes = soaking.requests, server.rss_bytes()
        soaking.send_until(requests)
        yield Measurement(
            kind="soak",
            server=_SERVER,
            model=NULL,
            round=1,
            load=float(_CONNECTIONS),
            seconds=soaking.seconds,
            images_per_second=soaking.statuses.get("200", 0) / soaking.seconds,
            statuses=soaking.statuses,
            failed=soaking.failed,
            figures={
                "early_requests": early_requests,
                "early_rss_bytes": early_bytes,
                "requests": soaking.requests,
                "rss_bytes": server.rss_bytes(),
            },
        )


class _Soaking:
    """Counts the requests sent to one server."""

    def __init__(self, server: RunningServer, bench: Bench) -> None:
        self._server = server
        self._bench = bench
        self.statuses: dict[str, int] = {}
        self.failed = 0
        self.seconds = 0.0

    @property
    def requests(self) -> int:
        return sum(self.statuses.values()) + self.failed

    def send_until(self, requests: int) -> None:
        """Send until there were as many, answered or not."""
        while self.requests < requests:
            expected_s = (requests - self.requests) * self.seconds / max(1, self.requests)
            slice_s = min(max(_LEAST_SLICE_S, expected_s), _LONGEST_SLICE_S)
            sent = closed_loop(
                self._server, self._bench.usual, connections=_CONNECTIONS, seconds=slice_s, warm_part=0.0
            ).report
            if not sent["statuses"] and not sent["failed"]:
                raise RuntimeError(f"{_SERVER} has stopped answering after {self.requests} requests")
            for status, count in sent["statuses"].items():
                self.statuses[status] = self.statuses.get(status, 0) + count
            self.failed += sent["failed"]
            self.seconds += sent["seconds"]
