"""A real model of the real catalog type, small enough to load in no time, and gates to hold its device and decoders."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
import torch
from fastapi import FastAPI
from torch import nn

from app.main import create_app
from app.settings import Settings
from models import backends
from models.backends import BackendOptions
from models.backends.pytorch import EagerBackend
from models.hardware import cores
from models.images.decode import Strips
from models.images.preprocessing import Transform
from models.inference.engine import Engine
from models.inference.image_job import BatchItem, ImageJob
from models.interface.telemetry import Telemetry
from models.loading import catalog
from models.loading.load import LoadedModel, load
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

SetOverlapMinSize = Callable[[int | None], None]

# Far over what any forward here takes, so that only a real deadlock meets it.
_PATIENCE_S = 30

StartOverHttp = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture(autouse=True)
def _random_inputs_are_the_same_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _garbage_of_other_tests_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that starts looks through all that its process has loaded, once; here hundreds start in one."""
    monkeypatch.setattr("app.main.freeze_loaded_objects", lambda: None)


def tiny_classifier() -> Classifier:
    """Two convolutions with BatchNorm and Dropout, seeded: (N, 3, 32, 32) to 16 features and 10 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(16, 10),
        )
    transform = Transform(36, 32, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Classifier(module, transform, tuple(f"class {index}" for index in range(10)))


@pytest.fixture(scope="session")
def tiny() -> ModelSpec:
    return ModelSpec("tiny", "tiny-convnet", tiny_classifier)


def _engine(model: LoadedModel) -> Engine:
    return Engine(model, EagerBackend(model, BackendOptions(max_batch_size=8)))


@pytest.fixture(scope="session")
def engine_for() -> Callable[[LoadedModel], Engine]:
    """An engine that serves a loaded model by PyTorch itself, in batches of up to 8."""
    return _engine


@pytest.fixture
def tiny_engine(tiny: ModelSpec) -> Engine:
    """The tiny model loaded for this test alone: it may be taken apart."""
    return _engine(load(tiny, backends.place("cpu", "fp32", "eager")))


@pytest.fixture(scope="session")
def default_model() -> LoadedModel:
    """The embedded default, loaded once. Not to be changed."""
    return load(catalog.find(catalog.DEFAULT_MODEL), backends.place("cpu", "fp32", "eager"))


@pytest.fixture(scope="session")
def default_engine(default_model: LoadedModel) -> Engine:
    return _engine(default_model)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted models, for all processes of the run: converting takes seconds."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "conversions"


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """PyTorch on one core in this thread: on a busy machine its threads wait for one another longer than they work."""
    threads = torch.get_num_threads()
    cores.use_one_core_in_this_thread()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def serving(tiny: ModelSpec) -> Iterator[LocalRuntime]:
    runtime = LocalRuntime(ServingOptions(device="cpu", backend="eager", models=[tiny]), Telemetry())
    yield runtime
    runtime.close(timeout_s=10)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Open at first, so that the model warms up; cleared, it holds every forward (or decode) of `gated` (or
    `slow_to_decode`). Opened at the end: no thread outlives its test."""
    opened = threading.Event()
    opened.set()
    yield opened
    opened.set()


@pytest.fixture
def entered() -> threading.Event:
    """Set when a forward reaches the gate. Warm-up sets it too: clear it first."""
    return threading.Event()


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Awaitable[None]]:
    """Wait until decode threads have queued `images` more images and finished. Until then an image in the queue or in
    its forward may still count as in its decode."""
    done = threading.Semaphore(0)
    queue = ImageJob.queue

    def record(job: ImageJob, batcher: Any, item: BatchItem) -> None:
        queue(job, batcher, item)
        done.release()

    async def wait_for(images: int) -> None:
        for _ in range(images):
            assert await asyncio.to_thread(done.acquire, timeout=_PATIENCE_S)

    monkeypatch.setattr(ImageJob, "queue", record)
    return wait_for


@pytest.fixture
def set_overlap_min_size(monkeypatch: pytest.MonkeyPatch) -> SetOverlapMinSize:
    """Replace the `overlap_min_size` of every backend."""
    hints = Engine.hints.fget
    assert hints is not None

    def set_to(size: int | None) -> None:
        monkeypatch.setattr(Engine, "hints", property(lambda engine: replace(hints(engine), overlap_min_size=size)))

    return set_to


@pytest.fixture
def gated(
    tiny: ModelSpec, gate: threading.Event, entered: threading.Event, set_overlap_min_size: SetOverlapMinSize
) -> ModelSpec:
    """The tiny model with a gate before its first layer. A batch that waits there occupies the whole device, as on a
    GPU: only a full batch is started alongside it."""
    set_overlap_min_size(None)

    class Gate(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            entered.set()
            assert gate.wait(_PATIENCE_S)
            return images

    def build() -> Classifier:
        classifier = tiny.build()
        return Classifier(nn.Sequential(Gate(), classifier.module), classifier.transform, classifier.labels)

    return ModelSpec("tiny", "tiny-convnet", build)


@pytest.fixture
def slow_to_decode(tiny: ModelSpec, gate: threading.Event, entered: threading.Event) -> ModelSpec:
    """The tiny model with a gate at the end of each decode."""
    reached = entered

    @dataclass(frozen=True, slots=True)
    class GatedTransform(Transform):
        opened: ClassVar[threading.Event] = gate
        arrived: ClassVar[threading.Event] = reached

        def shape_strips(self, picture: Strips) -> torch.Tensor:
            self.arrived.set()
            assert self.opened.wait(_PATIENCE_S)
            return Transform.shape_strips(self, picture)

    def build() -> Classifier:
        classifier = tiny.build()
        return Classifier(classifier.module, GatedTransform(**asdict(classifier.transform)), classifier.labels)

    return ModelSpec("tiny", "tiny-convnet", build)


@pytest.fixture
def application(tiny: ModelSpec) -> FastAPI:
    """The whole application over the tiny model, not yet started."""
    return _application(tiny)


@pytest.fixture
async def client(application: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client of the started application, in process."""
    async with _started(application) as http:
        yield http


@pytest.fixture
def over_http() -> StartOverHttp:
    """Start an application over one spec, with ServingOptions of one's own; yields its client."""

    def start(spec: ModelSpec, **options: Any) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
        return _started(_application(spec, **options))

    return start


@pytest.fixture
def images_total() -> Callable[[str], Counter[str]]:
    """Return gradless_images_total of an exposition by outcome, without zeros."""

    def read(exposition: str) -> Counter[str]:
        found = re.findall(r'^gradless_images_total\{.*outcome="(\w+)".*\} (\S+)$', exposition, re.MULTILINE)
        counted: Counter[str] = Counter()
        for outcome, count in found:
            counted[outcome] += int(float(count))
        return +counted

    return read


def _application(spec: ModelSpec, **options: Any) -> FastAPI:
    def start(telemetry: Telemetry) -> LocalRuntime:
        return LocalRuntime(
            ServingOptions(models=[spec], **{"device": "cpu", "backend": "eager", **options}), telemetry
        )

    return create_app(Settings(models=(spec.name,), metrics_max_age_s=0), start)


@asynccontextmanager
async def _started(application: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(application, raise_app_exceptions=False)
    async with (
        application.router.lifespan_context(application),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http,
    ):
        yield http
