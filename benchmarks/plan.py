"""The plan of a run: servers, models, loads, rounds and seconds, and an estimate of its duration."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.comparisons import ALONE, BUSY, MANY
from benchmarks.measurement import Ceiling
from benchmarks.servers import DEFAULT, NULL, SHARED_ENGINES, ServerSpec

CONNECTIONS = (1, 8, 32, 128)

# Those that bars compare.
_COMPARED_CONNECTIONS = (ALONE, BUSY, MANY)

# Repetitions in each round of what the bars compare, in quick succession, because a shared machine changes in minutes.
TURNS = 3

LOADS_PERCENT = (50, 80, 95, 120)

# Percent of the capacity, more than a server can answer.
OVERLOAD_PERCENT = 120

# Seconds in which the queue (GRADLESS_QUEUE_CAPACITY) is filled before an overload counts.
QUEUE_CAPACITY = 256
FILLING_S = 2.0

# Connections of measurements by image size, enough to keep two cores busy.
SIZE_CONNECTIONS = 4

# Warm-up seconds under load, in which caches fill and batch sizes settle.
WARM_UP_S = 2.0

# A second model shows the results for a heavier forward: at one load, with gradless's default, its eager backend, and
# the two fastest peers of the first model.
_SECOND_MODEL_SERVERS = frozenset({DEFAULT, "gradless eager fp32", "LitServe", "mosec"})
_SECOND_MODEL_CONNECTIONS = (32,)

# Sizes and open loops do not depend on precision and are measured without these two.
_RATES_ONLY = frozenset({"gradless openvino int8", "gradless eager bf16"})
_RATES_ONLY_ENGINES = frozenset(SHARED_ENGINES.values())

# The null model is compared with decoding alone, at one load.
_NULL_CONNECTIONS = (32,)

# Estimates on two cores: start and end of a server; a ceilings process; start of a load and drain of answers.
_START_S = 9.0
_CEILING_START_S = 6.0
_CEILING_ANSWERS = 128
_LOAD_START_S = 0.8
_DRAIN_S = 0.5

# Estimates of preprocessing; of the first start, a later one, and the imports.
_PREPROCESSING_S = 4.0
_STARTS_S = 25.0

# Estimate of agreement, compiled backends included, on some hundred pictures.
_AGREEMENT_S = 90.0

# Estimated images a second of most servers on two cores, and gradless's factor with OpenVINO.
_PACE = {"efficientnet_lite0": 60.0, "resnet50": 16.0, NULL: 600.0}
_OPENVINO_PACE = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`seconds` is for one measurement; a closed loop with too few answers takes longer. `all_engines`:
    agreement of every backend and precision, not only of the served ones."""

    servers: tuple[ServerSpec, ...]
    models: tuple[str, ...]
    rounds: int
    seconds: float
    connections: tuple[int, ...] = CONNECTIONS
    loads_percent: tuple[int, ...] = LOADS_PERCENT
    turns: int = TURNS
    all_engines: bool = True

    @property
    def visited_models(self) -> tuple[str, ...]:
        """Return `models`, and the null model if its server is among `servers`."""
        return (*self.models, NULL) if any(NULL in spec.models for spec in self.servers) else self.models

    @property
    def gradless_engines(self) -> tuple[ServerSpec, ...]:
        """Return the configurations of gradless with a network."""
        return tuple(spec for spec in self.servers if spec.backend and NULL not in spec.models)

    def servers_of(self, model: str) -> list[ServerSpec]:
        """Return all servers for the first model, a few for others."""
        return [
            spec
            for spec in self.servers
            if model in spec.models and (not self._is_second(model) or spec.name in _SECOND_MODEL_SERVERS)
        ]

    def turns_of(self, spec: ServerSpec, model: str) -> int:
        """Return the number of turns: several for what the bars compare."""
        the_server_itself = model == NULL and self.with_ceilings(spec, model)
        return self.turns if self.with_overload(spec, model) or the_server_itself else 1

    def connections_of(self, model: str, turn: int) -> tuple[int, ...]:
        """Return the connections of the closed loops in order."""
        if model == NULL:
            return _NULL_CONNECTIONS
        if self._is_second(model):
            return _SECOND_MODEL_CONNECTIONS
        return tuple(count for count in self.connections if turn == 1 or count in _COMPARED_CONNECTIONS)

    def ceilings_of(self, model: str, connections: int) -> tuple[Ceiling, ...]:
        """Return the ceilings of a closed loop."""
        if connections == ALONE:
            return ("alone",)
        if connections == BUSY:
            # Decoding is the ceiling of the null model.
            return ("together", "decoding") if model == NULL else ("together",)
        return ()

    def open_loads(self, spec: ServerSpec, model: str) -> tuple[int, ...]:
        """Return the loads in percent of the capacity, only for the first model."""
        return self.loads_percent if model == self.models[0] and not _rates_only(spec) else ()

    def with_overload(self, spec: ServerSpec, model: str) -> bool:
        """Return whether to measure overload: only of gradless's default, because others have no such limits."""
        return model == self.models[0] and spec.name == DEFAULT

    def with_sizes(self, spec: ServerSpec, model: str) -> bool:
        """Return whether to measure sizes: only with the first model, whose forward is the smaller part."""
        return model == self.models[0] and not _rates_only(spec)

    def with_ceilings(self, spec: ServerSpec, model: str) -> bool:
        """Return whether to measure ceilings: once for each engine, with its first server."""
        first = next((found for found in self.servers_of(model) if found.engine == spec.engine), None)
        return spec.backend is not None and spec == first

    def expected_minutes(self) -> float:
        """Return an estimate in minutes; slow servers take a little longer."""
        a_round = sum(self._visit_s(spec, model) for model in self.visited_models for spec in self.servers_of(model))
        if not self.gradless_engines:
            return self.rounds * a_round / 60
        return (self.rounds * (a_round + _PREPROCESSING_S + _STARTS_S) + _AGREEMENT_S) / 60

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
    """Return seconds for four answers on each connection after the warm-up; with fewer, batch ends decide the rate."""
    return max(least, 4 * connections / max(images_per_second, 1.0))


def overload_seconds(seconds: float) -> float:
    """Return seconds, more than for others, because the bar allows only a few percent."""
    return 4 * seconds


def expected_pace(images_per_second: float, megapixels: float) -> float:
    """Return an estimate of images a second at a larger size, to choose the duration."""
    return images_per_second / (1 + megapixels / 3)


def _rates_only(spec: ServerSpec) -> bool:
    return spec.name in _RATES_ONLY or spec.engine in _RATES_ONLY_ENGINES
