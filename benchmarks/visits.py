"""Measurements of one running server in one round: closed loops with their ceilings, overload, open loops, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import plan as plans
from benchmarks.bench import Bench
from benchmarks.ceilings_process import Ceilings, ceilings
from benchmarks.load import Loaded, closed_loop, open_loop
from benchmarks.measurement import Kind, Measurement, latency
from benchmarks.pictures import megapixels
from benchmarks.plan import Plan
from benchmarks.processes import RunningServer, resident_bytes, running
from benchmarks.servers import ServerSpec


def visit(plan: Plan, spec: ServerSpec, model: str, number: int, bench: Bench) -> Iterator[Measurement]:
    """Start `spec`, measure what `plan` has for it in round `number`, and end it.

    Raises ServerFailedError, and RuntimeError if its ceilings fail.
    """
    with ExitStack() as stack:
        process = None
        if plan.with_ceilings(spec, model):
            process = stack.enter_context(ceilings(plan, spec, model, number, bench))
        server = stack.enter_context(running(spec, model, bench))
        yield from Visit(server, process, spec, model, number, plan, bench).measurements()


class Visit:
    """A running server, and the process of its ceilings if it has any."""

    def __init__(
        self,
        server: RunningServer,
        process: Ceilings | None,
        spec: ServerSpec,
        model: str,
        number: int,
        plan: Plan,
        bench: Bench,
    ) -> None:
        self._server = server
        self._ceilings_process = process
        self._spec = spec
        self._model = model
        self._round = number
        self._plan = plan
        self._bench = bench

    def measurements(self) -> Iterator[Measurement]:
        """Measure turns of closed loops, ceilings and overload, then open loops at shares of the capacity, then
        sizes."""
        files = self._bench.usual
        warm = closed_loop(self._server, files, connections=16, seconds=plans.WARM_UP_S, warm_part=0.5)
        pace = warm.report["steady_per_second"]
        for turn in range(1, self._plan.turns_of(self._spec, self._model) + 1):
            for measured in self._turn(turn, pace):
                # One connection does not show the capacity.
                pace = max(pace, measured.images_per_second) if measured.kind == "closed" else pace
                yield measured
        for percent in self._plan.open_loads(self._spec, self._model):
            yield self._open(files, percent, capacity=pace)
        if self._plan.with_sizes(self._spec, self._model):
            for size, paths in self._bench.pictures.items():
                expected = plans.expected_pace(pace, megapixels(size))
                yield self._closed("size", size, paths, plans.SIZE_CONNECTIONS, expected)

    def _turn(self, turn: int, pace: float) -> Iterator[Measurement]:
        """Measure what the bars compare, in quick succession."""
        size, files = self._bench.usual_size, self._bench.usual
        for connections in self._plan.connections_of(self._model, turn):
            measured = self._closed("closed", size, files, connections, pace, turn=turn)
            yield measured
            if self._ceilings_process:
                self._server.wait_until_idle()
                for ceiling in self._plan.ceilings_of(self._model, connections):
                    yield self._ceilings_process.measure(ceiling, turn)
        if self._plan.with_overload(self._spec, self._model):
            # From the most connections, whose queue is most like that under overload.
            yield self._overload(files, capacity=measured.images_per_second, turn=turn)

    def _closed(
        self, kind: Kind, size: str, files: list[Path], connections: int, pace: float, *, turn: int = 1
    ) -> Measurement:
        seconds = round(plans.closed_loop_seconds(connections, pace, self._plan.seconds))
        loaded = closed_loop(self._server, files, connections=connections, seconds=seconds)
        rate = loaded.report["steady_per_second"]
        return self._measurement(kind, float(connections), size, loaded, rate, turn=turn)

    def _open(self, files: list[Path], percent: int, *, capacity: float) -> Measurement:
        rate = capacity * percent / 100
        # A new schedule each round, the same for all servers.
        loaded = open_loop(self._server, files, rate=rate, seconds=self._plan.seconds, seed=self._round)
        answered = loaded.report["statuses"].get("200", 0) / loaded.report["seconds"]
        return self._measurement("open", float(percent), self._bench.usual_size, loaded, answered, offered=rate)

    def _overload(self, files: list[Path], *, capacity: float, turn: int) -> Measurement:
        """Send more than the server can answer, after filling its queue; otherwise the surplus would only fill the
        queue."""
        rate = capacity * plans.OVERLOAD_PERCENT / 100
        loaded = open_loop(
            self._server,
            files,
            rate=rate,
            seconds=plans.overload_seconds(self._plan.seconds),
            seed=self._round,
            filling=round(plans.QUEUE_CAPACITY + capacity * plans.FILLING_S),
            filling_s=plans.FILLING_S,
        )
        load, goodput = float(plans.OVERLOAD_PERCENT), loaded.report["steady_per_second"]
        return self._measurement("overload", load, self._bench.usual_size, loaded, goodput, offered=rate, turn=turn)

    def _measurement(
        self,
        kind: Kind,
        load: float,
        size: str,
        loaded: Loaded,
        rate: float,
        *,
        offered: float | None = None,
        turn: int = 1,
    ) -> Measurement:
        report = loaded.report
        return Measurement(
            kind=kind,
            server=self._spec.name,
            model=self._model,
            round=self._round,
            turn=turn,
            load=load,
            size=size,
            seconds=report["seconds"],
            images_per_second=rate,
            offered_per_second=offered,
            latency_ms=latency(report),
            refusal_latency_ms=latency(report["refusals"]) if "429" in report["statuses"] and offered else {},
            statuses=report["statuses"],
            failed=report["failed"],
            client_cpu_share=loaded.client_cpu_share,
            server_cpu_share=loaded.server_cpu_share,
            server_cpu_ms_per_image=loaded.server_cpu_seconds / max(1, report["succeeded"]) * 1e3,
            server_bytes=resident_bytes([self._server]),
            start_seconds=self._server.start_seconds,
            stages_ms=report.get("stages_ms", {}),
            figures={"late_p99_ms": report["late_p99_ms"]} if offered else {},
        )
