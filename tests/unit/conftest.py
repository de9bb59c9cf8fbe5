"""Fakes of the inference side: a device that waits at a gate, and a runtime with configured answers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.observability.tracing import Traces
from app.settings import Settings
from gradless.records import (
    ArmReport,
    Backward,
    Comparison,
    ComparisonOptions,
    LargestBatch,
    ModuleRetained,
    OutputFacts,
    Spread,
    SweepPoint,
    SweptArm,
    TrainFacts,
)
from models.interface.errors import OverloadedError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Loaded, ModelCard, Prediction, ScoredClass
from models.interface.telemetry import (
    AdmissionState,
    BatchReport,
    DeviceState,
    InstanceId,
    InstanceState,
    MemoryKind,
    StageSeconds,
    Task,
    Telemetry,
)
from models.scheduling.batcher import Batcher

# Only a failing test waits this long.
_PATIENCE_S = 30

Predict = Callable[..., Awaitable[Answer]]
Exchange = Callable[..., Awaitable[list[dict[str, Any]]]]


class GatedDevice:
    """A `run_batch` that records each batch and stays busy until it is released; a result is ten times its item."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._arrivals = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)
        self._open = False

    def run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self._arrivals.release()
        # For longer than a test waits: one that fails is not to find the device idle after all.
        if not self._open and not self._gate.acquire(timeout=2 * _PATIENCE_S):
            raise TimeoutError("the batch was not released")
        if self._open:
            # Others may have come before it was opened.
            self._gate.release()
        return [item * 10 for item in items]

    def wait_until_busy(self) -> None:
        """Return once one more batch has arrived."""
        assert self._arrivals.acquire(timeout=_PATIENCE_S), "no batch arrived"

    def finish_one(self) -> None:
        self._gate.release()

    def open(self) -> None:
        """Never be busy again."""
        self._open = True
        self._gate.release()


@pytest.fixture
def device() -> GatedDevice:
    return GatedDevice()


@pytest.fixture(scope="session")
def new_device() -> Callable[[], GatedDevice]:
    """For property tests, which need one for each example."""
    return GatedDevice


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the batcher reads: the list's only element."""
    now = [100.0]
    monkeypatch.setattr("models.scheduling.batcher.perf_counter", lambda: now[0])
    return now


@pytest.fixture
def new_batcher(device: GatedDevice) -> Iterator[Callable[..., Batcher[Any, Any]]]:
    """Make a batcher, over the gated device or another `run_batch`; it ends with the test."""
    made: list[Batcher[Any, Any]] = []

    def make(run_batch: Callable[..., Any] = device.run, **options: Any) -> Batcher[Any, Any]:
        made.append(Batcher(run_batch, name="m", **options))
        return made[-1]

    yield make
    device.open()
    closed = [batcher.close(_PATIENCE_S) for batcher in made]
    assert all(closed)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("GRADLESS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _garbage_of_other_tests_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that starts looks through all that its process has loaded, once; here hundreds start in one."""
    monkeypatch.setattr("app.main.freeze_loaded_objects", lambda: None)


def card_of(name: str) -> ModelCard:
    numbers = {"parameters": 7, "weight_bytes": 28, "input_size": 32, "classes": 10, "feature_dimensions": 3}
    place = {"device": "cpu", "dtype": "float32", "backend": "eager", "fingerprint": "0123456789abcdef"}
    shape = {"feature_shape": (3,), "feature_layer": None, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return ModelCard(
        name=name, architecture="none", training=False, load_seconds=1.5, version=1, **numbers, **shape, **place
    )


@pytest.fixture(scope="session")
def prediction() -> Callable[..., Prediction]:
    """Make the prediction of one image: `top_k` classes, the features given, and with `dense` all probabilities."""

    def make(
        top_k: int = 2,
        features: Sequence[float] = (3.0, 0.0, 4.0),
        seconds: StageSeconds | None = None,
        *,
        dense: bool = False,
    ) -> Prediction:
        classes = tuple(ScoredClass(index, f"class {index}", 0.5 / (index + 1)) for index in range(top_k))
        spent = seconds or StageSeconds(decode=0.001, queue=0.002, forward=0.003)
        batch = BatchReport(InstanceId("fake", "cpu"), 1, "idle", 0.003, spent.forward, spent.forward, dropped=0)
        # As those of `classes`, for the 10 classes of the fake model.
        everything = np.array([0.5 / (index + 1) for index in range(10)], np.float32) if dense else None
        return Prediction(classes, np.array(features, dtype=np.float32), 0.0, spent, batch, everything)

    return make


@pytest.fixture(scope="session")
def answer(prediction: Callable[..., Prediction]) -> Callable[..., Answer]:
    """Make an answer of the results given; of one image without any."""

    def make(*results: Any) -> Answer:
        return Answer("fake", "0123456789abcdef", 3, (3,), list(results) or [prediction()], 1)

    return make


def comparison_of(model: str, options: ComparisonOptions) -> Comparison:
    """Return a report of the requested arms, each with figures of its own."""
    arms = tuple(
        ArmReport(
            arm=arm,
            seconds=Spread(0.5 + number, 0.25 + number, 0.75 + number),
            against_grad=None if arm == "grad" else "no difference shown",
            peak_bytes=None if arm == "served" else 2000 + number,
            peak_note="it has memory of its own" if arm == "served" else None,
            retained_bytes=1000 * (arm == "grad"),
            retained_tensors=3 * (arm == "grad"),
            retained_note=None,
            output=OutputFacts(
                arm == "grad", "AddmmBackward0" if arm == "grad" else None, arm == "inference_mode", True
            ),
            backward=Backward(arm == "grad", None if arm == "grad" else "element 0 of tensors does not require grad"),
            max_abs_difference=0.0,
            top1_agreement=1.0,
            train=TrainFacts(4, 4, runs_agree=False, eval_runs_agree=True, dropouts=1) if arm == "train" else None,
        )
        for number, arm in enumerate(options.arms)
    )
    return Comparison(
        model=model,
        fingerprint="0123456789abcdef",
        architecture="none",
        device="cpu",
        dtype="float32",
        backend="eager",
        batch_size=options.batch_size,
        iterations=options.iterations,
        input="random pixels, seed 0",
        torch="2.0",
        arms=arms,
        left_out=(),
        modules=(ModuleRetained("layer.0", "Conv2d", 900, 2), ModuleRetained("", "Net", 100, 1)),
        sweep=tuple(
            SweepPoint(size, tuple(SweptArm(arm.arm, 0.1 * size, 10 * size, arm.peak_bytes) for arm in arms))
            for size in options.sweep
        ),
        largest_batch=LargestBatch(10**9, 100, 400),
        sentences=("With gradients on, this batch kept 1 kB for a backward pass that never runs.",),
    )


@pytest.fixture(scope="session")
def new_comparison() -> Callable[[str, ComparisonOptions], Comparison]:
    """Make a report of figures that were never measured."""
    return comparison_of


@dataclass
class FakeRuntime:
    """A models.interface.runtime.Runtime without a network; tests pass `predict`, `compare`, `load` and `unload`."""

    predict: Predict
    compare: Callable[..., Awaitable[Comparison]]
    load: Callable[[str, str | None], Awaitable[Loaded]]
    unload: Callable[[str], Awaitable[None]]
    ready: bool = True
    busy: float | None = None
    names: Sequence[str] = ("fake",)
    device_names: Sequence[str] = ("cpu",)
    classes: int = 10
    version: int = 1
    closed_within_s: list[float] = field(default_factory=list)
    overload: OverloadedError | None = None
    down: frozenset[str] = frozenset()
    names_overloaded: Collection[str] | None = None

    def started(self, telemetry: Telemetry) -> FakeRuntime:
        """Return itself as a started runtime, after reporting its models."""
        for name in self.names:
            telemetry.model_served(name, ["cpu"])
        return self

    @property
    def draining(self) -> bool:
        return not self.ready

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        facts: dict[str, Any] = {"device": ",".join(self.device_names), "classes": self.classes}
        return {name: replace(card_of(name), version=self.version, **facts) for name in self.names}

    @property
    def half_full(self) -> bool:
        return self.overload is not None

    def refusal(self, model: str, task: Task) -> OverloadedError | None:
        del task
        full = self.names if self.names_overloaded is None else self.names_overloaded
        return self.overload if model in full else None

    def admissions(self) -> Mapping[str, AdmissionState]:
        return {name: AdmissionState(in_flight=5, capacity=20) for name in self.names}

    def instances(self) -> Mapping[InstanceId, InstanceState]:
        state = InstanceState(
            depth=2, oldest_age_seconds=0.25, alive=self.ready, running_seconds=1.25, max_batch_size=8
        )
        return {InstanceId(name, device): state for name in self.names for device in self.device_names}

    def devices(self) -> Mapping[str, DeviceState]:
        memory: dict[MemoryKind, int] = {"allocated": 100, "free": 200, "total": 300}
        return {device: DeviceState(memory, self.busy) for device in self.device_names}

    def drain(self) -> None:
        self.ready = False

    def close(self, timeout_s: float) -> bool:
        self.closed_within_s.append(timeout_s)
        return True


@pytest.fixture(scope="session")
def new_runtime(prediction: Callable[..., Prediction], answer: Callable[..., Answer]) -> Callable[..., FakeRuntime]:
    async def predict(model: str | None, request: InferenceRequest) -> Answer:
        del model
        return answer(*[prediction(request.top_k, dense=request.all_probabilities) for _ in request.images])

    async def compare(model: str | None, options: ComparisonOptions, *_: object) -> Comparison:
        return comparison_of(model or "", options)

    async def load(name: str, source: str | None) -> Loaded:
        return Loaded(card_of(name), replaced=source is None)

    async def unload(name: str) -> None:
        del name

    def make(**options: Any) -> FakeRuntime:
        doings = {"predict": predict, "compare": compare, "load": load, "unload": unload}
        return FakeRuntime(**(doings | options))

    return make


@pytest.fixture
def application(new_runtime: Callable[..., FakeRuntime]) -> Callable[..., FastAPI]:
    """Make an application, not yet started, over a fake runtime: `runtime` has its options, `traces` gets the traces,
    the others are settings."""

    def make(runtime: Mapping[str, Any] | None = None, /, traces: Traces | None = None, **settings: Any) -> FastAPI:
        fake = new_runtime(**(runtime or {}))
        fields = {"models": tuple(fake.names), "metrics_max_age_s": 0, **settings}
        return create_app(Settings(**fields), fake.started, traces)

    return make


@pytest.fixture
def serve(application: Callable[..., FastAPI]) -> Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]:
    """Start an application, with the arguments of `application`, and give an HTTP client of it, whose address is
    `client_address`."""

    @asynccontextmanager
    async def start(
        runtime: Mapping[str, Any] | None = None, /, client_address: str = "127.0.0.1", **settings: Any
    ) -> AsyncIterator[httpx2.AsyncClient]:
        app = application(runtime, **settings)
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=(client_address, 123))
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            yield client

    return start


@pytest.fixture
def exchange() -> Exchange:
    """Drive a started application by hand, message by message, and give what it sent; in `sent`, also on failure."""

    async def drive(
        app: FastAPI,
        receive: Callable[[], Awaitable[dict[str, Any]]],
        path: str = "/v1/classify",
        headers: Sequence[tuple[bytes, bytes]] = (),
        query: bytes = b"",
        sent: list[dict[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [] if sent is None else sent

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "headers": list(headers),
            "client": ("127.0.0.1", 1),
            "server": ("gradless", 80),
        }
        async with asyncio.timeout(_PATIENCE_S):
            await app(scope, receive, send)
        return messages

    return drive


@pytest.fixture(scope="session")
def multipart() -> Callable[..., tuple[dict[str, str], bytes]]:
    """Make a multipart body of files, and the headers that go with it."""

    def make(*files: bytes) -> tuple[dict[str, str], bytes]:
        head = b'--cut\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        body = b"".join(head + file + b"\r\n" for file in files) + b"--cut--\r\n"
        return {"Content-Type": "multipart/form-data; boundary=cut"}, body

    return make
