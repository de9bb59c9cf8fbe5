"""How much is measured: servers, models, loads, rounds and seconds, and how long all of it will take."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.servers import ServerSpec

CONNECTIONS = (1, 8, 32, 128)
LOADS_PERCENT = (50, 80, 95, 120)

# Connections of the measurements by image size: enough to keep two cores busy.
SIZE_CONNECTIONS = 4

# Seconds under load before the first measurement: caches fill, batch sizes and threads settle.
WARM_UP_S = 2.0

# What a server takes from its start to its first answer, and to end, on two cores; and a ceiling's process.
_START_S = 8.0
_CEILING_START_S = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`seconds` is for one measurement; a closed loop takes longer where `seconds` see too few answers."""

    servers: tuple[ServerSpec, ...]
    models: tuple[str, ...]
    rounds: int
    seconds: float
    connections: tuple[int, ...] = CONNECTIONS
    loads_percent: tuple[int, ...] = LOADS_PERCENT
    sizes: bool = True

    def open_loads(self, model: str) -> tuple[int, ...]:
        """Percent of the capacity: for the first model alone, the other's shape is the same at other figures."""
        return self.loads_percent if model == self.models[0] else ()

    def with_sizes(self, model: str) -> bool:
        """Sizes are about decoding: once is enough, with the model whose forward is the smaller part."""
        return self.sizes and model == self.models[0]

    def expected_minutes(self) -> float:
        """A little more in practice: slow servers are measured longer."""
        a_round = 0.0
        for model in self.models:
            measured = len(self.connections) + len(self.open_loads(model)) + 3 * self.with_sizes(model)
            a_round += len(self.servers) * (_START_S + WARM_UP_S + measured * (self.seconds + 0.5))
            a_round += self._ceilings() * (_CEILING_START_S + 3 * self.seconds)
        return self.rounds * a_round / 60

    def _ceilings(self) -> int:
        return sum(spec.name.startswith("gradless ") for spec in self.servers)


def closed_loop_seconds(connections: int, images_per_second: float, least: float) -> float:
    """Long enough for four answers on each connection, warm-up not counted: with fewer, where the batches happen to
    end decides the rate."""
    return max(least, 4 * connections / max(images_per_second, 1.0))


def expected_pace(images_per_second: float, megapixels: float) -> float:
    """Images a second at a larger size, from those at the usual: a guess, to choose how long to measure."""
    return images_per_second / (1 + megapixels / 3)
