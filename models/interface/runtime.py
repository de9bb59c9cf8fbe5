"""The inference side as the HTTP side sees it. Tests implement it without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from gradless.records import Comparison, ComparisonOptions, Progress
from models.interface.errors import OverloadedError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Loaded, ModelCard
from models.interface.telemetry import BatcherState, MemoryKind, QueueState, Task, Telemetry


class Runtime(Protocol):
    """Every model of the process. Its methods and their errors are described at models.serving.runtime.Serving."""

    @property
    def cards(self) -> Mapping[str, ModelCard]: ...

    @property
    def ready(self) -> bool: ...

    @property
    def draining(self) -> bool: ...

    @property
    def full(self) -> bool: ...

    def refusal(self, model: str, task: Task) -> OverloadedError | None: ...

    async def predict(self, model: str | None, request: InferenceRequest) -> Answer: ...

    async def compare(
        self,
        model: str | None,
        options: ComparisonOptions,
        image: bytes | None,
        on_progress: Callable[[Progress], None],
    ) -> Comparison: ...

    async def load(self, name: str, source: str | None) -> Loaded: ...

    async def unload(self, name: str) -> None: ...

    def queues(self) -> Mapping[str, QueueState]: ...

    def batchers(self) -> Mapping[str, BatcherState]: ...

    def memory_bytes(self) -> Mapping[MemoryKind, int]: ...

    def utilization(self) -> float | None: ...

    def drain(self) -> None: ...

    def close(self, timeout_s: float) -> bool: ...


# Loads and warms up, which may take long and raise StartError. Called once, when the application starts.
StartRuntime = Callable[[Telemetry], Runtime]
