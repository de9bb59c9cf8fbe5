"""How much is measured: servers, models, loads, rounds and seconds, and how long all of it will take."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.comparisons import ALONE, BUSY, MANY
from benchmarks.measurement import Ceiling
from benchmarks.servers import DEFAULT, NULL, SHARED_ENGINES, ServerSpec

CONNECTIONS = (1, 8, 32, 128)

# Of those, the ones that something is compared with.
_COMPARED_CONNECTIONS = (ALONE, BUSY, MANY)

# What the bars compare is measured so often in each round, one right after the other: over minutes, a machine that
# others have a part of is not the same machine.
TURNS = 3

LOADS_PERCENT = (50, 80, 95, 120)

# More than a server can do, from the first moment on.
OVERLOAD_PERCENT = 120

# Before an overload counts, the places in the building (GRADLESS_QUEUE_CAPACITY) are taken within so many seconds.
QUEUE_CAPACITY = 256
FILLING_S = 2.0

# Connections of the measurements by image size: enough to keep two cores busy.
SIZE_CONNECTIONS = 4

# Seconds under load before the first measurement: caches fill, batch sizes and threads settle.
WARM_UP_S = 2.0

# A second model shows whether the picture is the same where the forward is heavier: by one load, with gradless as it
# starts and on the others' engine, and with the two that were the fastest of the others with the first model.
_SECOND_MODEL_SERVERS = frozenset({DEFAULT, "gradless eager fp32", "LitServe", "mosec"})
_SECOND_MODEL_CONNECTIONS = (32,)

# Neither the cost of larger pictures nor the shape of latency against load is a matter of precision: they are measured
# without these two.
_RATES_ONLY = frozenset({"gradless openvino int8", "gradless eager bf16"})
_RATES_ONLY_ENGINES = frozenset(SHARED_ENGINES.values())

# The server alone is compared with decoding alone, at one load.
_NULL_CONNECTIONS = (32,)

# What a server takes from its start to its first answer, and to end, on two cores; a ceiling's process; what loads
# take to start and answers to drain.
_START_S = 9.0
_CEILING_START_S = 6.0
_CEILING_ANSWERS = 128
_LOAD_START_S = 0.8
_DRAIN_S = 0.5

# Preprocessing in its process; the first start, a later one, and the imports.
_PREPROCESSING_S = 4.0
_STARTS_S = 25.0

# Agreement, compiled backends included, on some hundred pictures.
_AGREEMENT_S = 90.0

# Images a second to expect of most servers on two cores; of gradless behind OpenVINO, so many times as many.
_PACE = {"efficientnet_lite0": 60.0, "resnet50": 16.0, NULL: 600.0}
_OPENVINO_PACE = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`seconds` is for one measurement; a closed loop takes longer where `seconds` see too few answers.
    `soak_requests`: sent to the null model at the end, for the memory they leave behind; 0: none. `all_engines`:
    agreement of every backend and precision, not only of those that are served."""

    servers: tuple[ServerSpec, ...]
    models: tuple[str, ...]
    rounds: int
    seconds: float
    connections: tuple[int, ...] = CONNECTIONS
    loads_percent: tuple[int, ...] = LOADS_PERCENT
    turns: int = TURNS
    soak_requests: int = 0
    all_engines: bool = True

    @property
    def visited_models(self) -> tuple[str, ...]:
        """`models`, and the null model where its server is among `servers`."""
        return (*self.models, NULL) if any(NULL in spec.models for spec in self.servers) else self.models

    @property
    def gradless_engines(self) -> tuple[ServerSpec, ...]:
        """gradless with a network behind it, each way that it is measured."""
        return tuple(spec for spec in self.servers if spec.backend and NULL not in spec.models)

    def servers_of(self, model: str) -> list[ServerSpec]:
        """All of them for the first model, a few for others."""
        return [
            spec
            for spec in self.servers
            if model in spec.models and (not self._is_second(model) or spec.name in _SECOND_MODEL_SERVERS)
        ]

    def turns_of(self, spec: ServerSpec, model: str) -> int:
        """Several where there are bars for what is compared."""
        the_server_itself = model == NULL and self.with_ceilings(spec, model)
        return self.turns if self.with_overload(spec, model) or the_server_itself else 1

    def connections_of(self, model: str, turn: int) -> tuple[int, ...]:
        """Of the closed loops, in their order."""
        if model == NULL:
            return _NULL_CONNECTIONS
        if self._is_second(model):
            return _SECOND_MODEL_CONNECTIONS
        return tuple(count for count in self.connections if turn == 1 or count in _COMPARED_CONNECTIONS)

    def ceilings_of(self, model: str, connections: int) -> tuple[Ceiling, ...]:
        """What a closed loop is compared with."""
        if connections == ALONE:
            return ("alone",)
        if connections == BUSY:
            # Decoding is the same whatever comes after it, and is the ceiling where nothing does.
            return ("together", "decoding") if model == NULL else ("together",)
        return ()

    def open_loads(self, spec: ServerSpec, model: str) -> tuple[int, ...]:
        """Percent of the capacity: for the first model alone, the other's shape is the same at other figures."""
        return self.loads_percent if model == self.models[0] and not _rates_only(spec) else ()

    def with_overload(self, spec: ServerSpec, model: str) -> bool:
        """Of gradless as it starts, which is to refuse what is too much; others have limits of their own, or none."""
        return model == self.models[0] and spec.name == DEFAULT

    def with_sizes(self, spec: ServerSpec, model: str) -> bool:
        """Sizes are about decoding: once is enough, with the model whose forward is the smaller part."""
        return model == self.models[0] and not _rates_only(spec)

    def with_ceilings(self, spec: ServerSpec, model: str) -> bool:
        """Once for each engine, beside the first server that has it."""
        first = next((found for found in self.servers_of(model) if found.engine == spec.engine), None)
        return spec.backend is not None and spec == first

    def expected_minutes(self) -> float:
        """A little more in practice: slow servers are measured longer."""
        a_round = sum(self._visit_s(spec, model) for model in self.visited_models for spec in self.servers_of(model))
        if not self.gradless_engines:
            return self.rounds * a_round / 60
        once = _AGREEMENT_S + self.soak_requests / _PACE[NULL]
        return (self.rounds * (a_round + _PREPROCESSING_S + _STARTS_S) + once) / 60

    def _is_second(self, model: str) -> bool:
        return model in self.models[1:]

    def _visit_s(self, spec: ServerSpec, model: str) -> float:
        pace = _PACE[model] * (_OPENVINO_PACE if spec.backend == "openvino" else 1)
        loads = [self.seconds + _DRAIN_S for _ in self.open_loads(spec, model)]
        loads += [self.seconds] * 3 * self.with_sizes(spec, model)
        for turn in range(1, self.turns_of(spec, model) + 1):
            connections = self.connections_of(model, turn)
            loads += [closed_loop_seconds(count, pace, self.seconds) for count in connections]
            loads += self._ceilings_s(spec, model, connections, pace)
            if self.with_overload(spec, model):
                loads.append(FILLING_S + overload_seconds(self.seconds) + QUEUE_CAPACITY / pace)
        start_s = _START_S + _CEILING_START_S * self.with_ceilings(spec, model)
        return start_s + WARM_UP_S + sum(seconds + _LOAD_START_S for seconds in loads)

    def _ceilings_s(self, spec: ServerSpec, model: str, connections: tuple[int, ...], pace: float) -> list[float]:
        if not self.with_ceilings(spec, model):
            return []
        found = [ceiling for count in connections for ceiling in self.ceilings_of(model, count)]
        least = {"together": _CEILING_ANSWERS / pace}
        return [max(self.seconds, least.get(ceiling, 0.0)) for ceiling in found]


def closed_loop_seconds(connections: int, images_per_second: float, least: float) -> float:
    """Long enough for four answers on each connection, warm-up not counted: with fewer, where the batches happen to
    end decides the rate."""
    return max(least, 4 * connections / max(images_per_second, 1.0))


def overload_seconds(seconds: float) -> float:
    """Longer than others: of a rate at its limit, a few percent are asked for."""
    return 4 * seconds


def expected_pace(images_per_second: float, megapixels: float) -> float:
    """Images a second at a larger size, from those at the usual: a guess, to choose how long to measure."""
    return images_per_second / (1 + megapixels / 3)


def _rates_only(spec: ServerSpec) -> bool:
    return spec.name in _RATES_ONLY or spec.engine in _RATES_ONLY_ENGINES
