"""Models are loaded, replaced and unloaded while others are served: the version that accepts a request answers it, and
a failed change changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from gradless.records import ComparisonOptions
from models.hardware import memory
from models.inference.engine import Engine
from models.interface.errors import (
    DrainingError,
    LastModelError,
    LoadTimeoutError,
    ModelChangingError,
    ModelGoneError,
    ModelNotLoadedError,
    NoRoomError,
    StartError,
    TooManyModelsError,
    UnknownModelError,
)
from models.interface.request import InferenceRequest
from models.interface.results import Answer
from models.interface.telemetry import Telemetry
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30


class _Gate(nn.Module):
    """Before the first layer of one version: it holds forwards while it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.opened.set()
        self.entered = threading.Event()
        # A ring, as some networks have: nothing but the garbage collector undoes it.
        self.ring = [self]

    def __deepcopy__(self, _memo: object) -> _Gate:
        # The eager backend serves a copy; an event has none.
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.entered.set()
        assert self.opened.wait(_PATIENCE_S)
        return images

    def close(self) -> None:
        """From now on, and forget the forwards of the warm-up."""
        self.opened.clear()
        self.entered.clear()

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, _PATIENCE_S)


class _Versions:
    """A model whose every build has other weights and a gate of its own; `hold` keeps builds from ending."""

    def __init__(self, tiny: ModelSpec) -> None:
        self._tiny = tiny
        self.gates: list[_Gate] = []
        self.broken: Exception | None = None
        self.building = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec("tiny", "tiny-convnet", self._build)

    def _build(self) -> Classifier:
        self.building.set()
        assert self.hold.wait(_PATIENCE_S)
        if self.broken is not None:
            raise self.broken
        classifier = self._tiny.build()
        self.gates.append(_Gate())
        head = classifier.module[-1]  # type: ignore[index]
        with torch.no_grad():
            head.bias += len(self.gates)
        module = nn.Sequential(self.gates[-1], classifier.module)
        return Classifier(module, classifier.transform, classifier.labels)


@pytest.fixture
def versions(tiny: ModelSpec) -> Iterator[_Versions]:
    made = _Versions(tiny)
    yield made
    made.hold.set()
    for gate in made.gates:
        gate.opened.set()


@pytest.fixture
def serve(versions: _Versions) -> Iterator[Callable[..., LocalRuntime]]:
    started: list[LocalRuntime] = []

    def start(**options: object) -> LocalRuntime:
        models = {"models": [versions.spec], "backend": "eager", **options}
        started.append(LocalRuntime(ServingOptions(**models), Telemetry()))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for gate in versions.gates:
        gate.opened.set()
    versions.hold.set()
    for serving in started:
        serving.close(timeout_s=10)


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """At the end of the test."""
    yield
    gc.unfreeze()


async def _predict(serving: LocalRuntime, image: bytes, model: str | None = None) -> Answer:
    return await serving.predict(model, InferenceRequest("classify", [image], top_k=1))


def _model_threads() -> set[threading.Thread]:
    """Those that live as long as a model."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(("batcher", "forward"))}


def _loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


async def test_a_new_version_replaces_the_old_one_which_answers_its_accepted_requests(
    serve: Callable[..., LocalRuntime], versions: _Versions, clock_png: bytes
) -> None:
    serving = serve()
    first = serving.cards["tiny"]
    versions.gates[0].close()
    # One in the forward, others behind it.
    accepted = [asyncio.create_task(_predict(serving, clock_png)) for _ in range(3)]
    await versions.gates[0].reached()

    loading = asyncio.create_task(serving.load("tiny"))
    async with asyncio.timeout(_PATIENCE_S):
        while serving.cards["tiny"].version == 1:  # noqa: ASYNC110 - a thread of its own makes it so
            await asyncio.sleep(0.01)
    after = await _predict(serving, clock_png)
    assert not any(task.done() for task in [*accepted, loading])
    versions.gates[0].opened.set()
    before = await asyncio.gather(*accepted)
    loaded = await loading

    second = serving.cards["tiny"]
    assert loaded.replaced
    assert loaded.card == second
    assert (first.version, second.version) == (1, 2)
    assert first.fingerprint != second.fingerprint
    assert {answer.fingerprint for answer in before} == {first.fingerprint}
    assert after.fingerprint == second.fingerprint
    assert serving.ready


async def test_a_model_is_served_alongside_others_until_it_is_unloaded(
    serve: Callable[..., LocalRuntime], clock_png: bytes
) -> None:
    serving = serve()
    loaded = await serving.load("second", "null")
    assert (await _predict(serving, clock_png, "second")).model == "second"
    assert not loaded.replaced
    assert list(serving.cards) == list(serving.admissions()) == ["tiny", "second"]
    assert [device for _, device in serving.instances()] == ["cpu", "cpu"]

    await serving.unload("second")
    with pytest.raises(UnknownModelError):
        await _predict(serving, clock_png, "second")
    assert list(serving.cards) == ["tiny"]
    assert (await _predict(serving, clock_png)).model == "tiny"


async def test_a_model_that_is_unloaded_answers_its_accepted_requests(
    serve: Callable[..., LocalRuntime], versions: _Versions, clock_png: bytes
) -> None:
    serving = serve()
    await serving.load("second", "null")
    versions.gates[0].close()
    accepted = [asyncio.create_task(_predict(serving, clock_png)) for _ in range(3)]
    await versions.gates[0].reached()
    unloading = asyncio.create_task(serving.unload("tiny"))
    async with asyncio.timeout(_PATIENCE_S):
        while "tiny" in serving.cards:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # The next in the list is the default now.
    assert (await _predict(serving, clock_png)).model == "second"
    assert not unloading.done()
    versions.gates[0].opened.set()
    assert {answer.model for answer in await asyncio.gather(*accepted)} == {"tiny"}
    await unloading


async def test_the_last_model_cannot_be_unloaded(serve: Callable[..., LocalRuntime], clock_png: bytes) -> None:
    serving = serve()
    with pytest.raises(LastModelError):
        await serving.unload("tiny")
    with pytest.raises(UnknownModelError):
        await serving.unload("other")
    assert (await _predict(serving, clock_png)).model == "tiny"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (StartError("its file is gone"), ModelNotLoadedError, "its file is gone"),
        (ValueError("unexpected\nin two lines"), ModelNotLoadedError, "ValueError: unexpected"),
        (MemoryError("not that much"), NoRoomError, "MemoryError: not that much"),
    ],
    ids=["of the source", "unforeseen", "memory"],
)
async def test_a_failed_load_leaves_the_old_version_unchanged(
    serve: Callable[..., LocalRuntime],
    versions: _Versions,
    clock_png: bytes,
    fault: Exception,
    error: type[Exception],
    message: str,
) -> None:
    serving = serve()
    before = serving.cards["tiny"]
    threads = _model_threads()
    versions.broken = fault
    with pytest.raises(error) as raised:
        await serving.load("tiny")

    assert str(raised.value).endswith(message)
    assert serving.cards["tiny"] == before
    assert serving.ready
    assert (await _predict(serving, clock_png)).fingerprint == before.fingerprint
    assert _model_threads() == threads
    versions.broken = None
    assert (await serving.load("tiny")).card.version == 2


async def test_a_version_that_fails_its_warm_up_leaves_no_thread(
    serve: Callable[..., LocalRuntime], versions: _Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = serve(device="cpu:0,cpu")
    assert versions.gates
    before = _model_threads()
    warm_up = Engine.warm_up

    def fails(engine: Engine) -> None:
        warm_up(engine)
        if engine.model.placement.device == torch.device("cpu"):
            raise StartError("its outputs are strange")

    monkeypatch.setattr(Engine, "warm_up", fails)
    with pytest.raises(ModelNotLoadedError, match="its outputs are strange"):
        await serving.load("tiny")
    assert _model_threads() == before


async def test_a_version_without_admission_leaves_no_thread(
    serve: Callable[..., LocalRuntime], versions: _Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = serve()
    assert versions.gates
    before = _model_threads()

    def fails(_capacity: int, _expected_seconds: object) -> None:
        raise OSError("no descriptor is left")

    monkeypatch.setattr("models.serving.served_model.Admission", fails)
    with pytest.raises(ModelNotLoadedError, match="no descriptor is left"):
        await serving.load("tiny")
    assert _model_threads() == before


async def test_a_model_without_memory_is_refused_before_its_warm_up(
    serve: Callable[..., LocalRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = serve()
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 100)
    with pytest.raises(NoRoomError, match="0 MB are left"):
        await serving.load("tiny")
    assert serving.cards["tiny"].version == 1


async def test_no_more_models_are_loaded_than_the_limit(serve: Callable[..., LocalRuntime]) -> None:
    serving = serve(max_models=2)
    await serving.load("second", "null")
    with pytest.raises(TooManyModelsError):
        await serving.load("third", "null")
    # A replacement does not add a model.
    assert (await serving.load("second", "null")).replaced


async def test_one_change_runs_at_a_time_and_goes_on_if_its_client_disconnects(
    serve: Callable[..., LocalRuntime], versions: _Versions
) -> None:
    serving = serve()
    versions.building.clear()
    versions.hold.clear()
    loading = asyncio.create_task(serving.load("tiny"))
    assert await asyncio.to_thread(versions.building.wait, _PATIENCE_S)
    for change in (serving.load("other", "null"), serving.unload("tiny")):
        with pytest.raises(ModelChangingError, match="tiny is being loaded"):
            await change
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    versions.hold.set()
    async with asyncio.timeout(_PATIENCE_S):
        while serving.cards["tiny"].version == 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # Its remains are freed too.
    assert await asyncio.to_thread(serving.close, _PATIENCE_S)


async def test_a_change_that_cannot_start_its_unloader_thread_does_not_block_the_next(
    serve: Callable[..., LocalRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = serve()
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("unloader"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="new thread"):
            await serving.load("second", "null")
    assert not (await serving.load("third", "null")).replaced
    assert list(serving.cards) == ["tiny", "second", "third"]


async def test_a_load_that_hangs_times_out_and_its_later_result_is_discarded(
    serve: Callable[..., LocalRuntime], versions: _Versions, clock_png: bytes
) -> None:
    # The later loads must succeed.
    serving = serve(load_timeout_s=3)
    before = _model_threads()
    versions.hold.clear()
    with pytest.raises(LoadTimeoutError, match=r"had not loaded after 3 s \(GRADLESS_LOAD_TIMEOUT_S\)"):
        await serving.load("tiny")
    [hanging] = _loaders()
    # No client waits for it any more.
    assert (await _predict(serving, clock_png)).fingerprint == serving.cards["tiny"].fingerprint
    assert not (await serving.load("second", "null")).replaced
    await serving.unload("second")
    assert serving.ready

    versions.hold.set()
    await asyncio.to_thread(hanging.join, _PATIENCE_S)
    assert not hanging.is_alive()
    assert len(versions.gates) == 2
    assert serving.cards["tiny"].version == 1
    assert _model_threads() == before


async def test_at_most_four_loads_that_hang_are_left_behind(
    serve: Callable[..., LocalRuntime], versions: _Versions
) -> None:
    serving = serve(load_timeout_s=0.1)
    versions.hold.clear()
    for _ in range(4):
        with pytest.raises(LoadTimeoutError, match="had not loaded"):
            await serving.load("tiny")
    with pytest.raises(LoadTimeoutError, match="4 earlier loads have not ended"):
        await serving.load("tiny")
    hanging = _loaders()
    assert len(hanging) == 4

    versions.hold.set()
    for thread in hanging:
        await asyncio.to_thread(thread.join, _PATIENCE_S)
    versions.building.clear()
    # The load begins; on a busy machine it may take longer than its 0.1 s.
    with contextlib.suppress(LoadTimeoutError):
        await serving.load("tiny")
    assert versions.building.is_set()


async def test_a_comparison_ends_when_its_model_is_replaced(
    serve: Callable[..., LocalRuntime], versions: _Versions
) -> None:
    serving = serve()
    versions.gates[0].close()
    comparison = asyncio.create_task(serving.compare(None, ComparisonOptions(batch_size=1, iterations=50)))
    await versions.gates[0].reached()
    loading = asyncio.create_task(serving.load("tiny"))
    # Although its forward is not over.
    with pytest.raises(ModelGoneError):
        async with asyncio.timeout(_PATIENCE_S):
            await comparison
    assert not loading.done()
    versions.gates[0].opened.set()
    await loading
    assert (await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1))).model == "tiny"


async def test_a_model_that_hangs_during_a_load_is_replaced_by_the_loaded_version(
    serve: Callable[..., LocalRuntime], versions: _Versions, clock_png: bytes
) -> None:
    serving = serve(forward_timeout_s=0.8)
    versions.building.clear()
    versions.hold.clear()
    loading = asyncio.create_task(serving.load("tiny"))
    assert await asyncio.to_thread(versions.building.wait, _PATIENCE_S)
    versions.gates[0].close()
    [failed] = await asyncio.gather(_predict(serving, clock_png), return_exceptions=True)
    assert type(failed).__name__ == "ModelDownError"
    assert not serving.ready
    # The supervisor ignores a model that is being replaced.
    assert serving._health_problems() == {}  # noqa: SLF001
    versions.hold.set()
    assert (await loading).card.version == 2
    assert (await _predict(serving, clock_png)).fingerprint == serving.cards["tiny"].fingerprint
    assert serving.ready
    # The supervisor has not built another one.
    assert len(versions.gates) == 2


async def test_a_draining_runtime_refuses_loads_and_discards_the_running_one(
    serve: Callable[..., LocalRuntime], versions: _Versions
) -> None:
    serving = serve()
    versions.building.clear()
    versions.hold.clear()
    loading = asyncio.create_task(serving.load("tiny"))
    assert await asyncio.to_thread(versions.building.wait, _PATIENCE_S)
    serving.drain()
    versions.hold.set()
    with pytest.raises(DrainingError):
        await loading
    with pytest.raises(DrainingError):
        await serving.load("other", "null")
    assert await asyncio.to_thread(serving.close, _PATIENCE_S)
    assert serving.cards["tiny"].version == 1


@pytest.mark.usefixtures("unfrozen")
@pytest.mark.parametrize(
    ("frozen", "device"),
    [(False, "cpu"), (True, "cpu"), (True, "cpu:0,cpu")],
    ids=["", "frozen at the start", "frozen, on two devices"],
)
async def test_a_replaced_version_is_freed_when_the_load_returns(
    serve: Callable[..., LocalRuntime],
    versions: _Versions,
    clock_png: bytes,
    frozen: bool,  # noqa: FBT001 - a parameter of the test
    device: str,
) -> None:
    serving = serve(device=device)
    await _predict(serving, clock_png)
    if frozen:
        gc.freeze()
    gates, threads = versions.gates, len(_model_threads())
    left = weakref.WeakSet(gates)
    gates.clear()
    await serving.load("tiny")
    assert not left
    for _ in range(3):
        await _predict(serving, clock_png)
        await serving.load("tiny")
    assert len(_model_threads()) == threads
    assert (gc.get_freeze_count() > 0) == frozen
