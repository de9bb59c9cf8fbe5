"""What the HTTP side asks of the inference side. models.serving.Serving is one; tests bring another, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from models.comparison import Comparison
from models.predictions import Answer, ModelCard
from models.telemetry import MemoryKind, QueueState, Task, Telemetry


class Runtime(Protocol):
    """Every model of the process. Its methods and their errors are described at models.serving.Serving."""

    @property
    def cards(self) -> Mapping[str, ModelCard]: ...

    @property
    def ready(self) -> bool: ...

    async def predict(self, model: str | None, images: Sequence[bytes], *, task: Task, top_k: int) -> Answer: ...

    async def compare(self, model: str | None, *, batch_size: int, iterations: int) -> Comparison: ...

    def queues(self) -> Mapping[str, QueueState]: ...

    def memory_bytes(self) -> Mapping[MemoryKind, int]: ...

    def drain(self) -> None: ...

    def close(self, timeout_s: float) -> bool: ...


# Loads and warms up, which may take long and raise StartError. Called once, when the application starts.
StartRuntime = Callable[[Telemetry], Runtime]
