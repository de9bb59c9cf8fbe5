"""Models change under load in a real process: no request is lost, each is answered by a loaded version, and replaced
versions are freed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
import pytest
import torch
import torchvision
from safetensors.torch import save_file

pytestmark = pytest.mark.anyio

CLIENTS = 16
_PAUSE_S = 0.1
RELOADS = 3
# What the first loads of a process bring for good, and how its heap is cut up then, is there after these.
LOADS_BEFORE = 4
ARCHITECTURE = "shufflenet_v2_x0_5"

# What allocators keep of a network of 1.4 MB and its conversions, found by trying; a version that stays is more.
ALLOWED_GROWTH_BYTES = 40e6


class Vitals(NamedTuple):
    threads: int
    descriptors: int
    rss_bytes: int


def _vitals(process: psutil.Process) -> Vitals:
    with process.oneshot():
        return Vitals(process.num_threads(), process.num_fds(), process.memory_info().rss)


def _write_weights(folder: Path, seed: int) -> None:
    """Seeded weights of ten classes, put in the place of those before in one step."""
    torch.manual_seed(seed)
    network = torchvision.models.get_model(ARCHITECTURE, weights=None, num_classes=10)
    save_file(network.state_dict(), folder / "new.safetensors")
    (folder / "new.safetensors").replace(folder / "weights.safetensors")


@pytest.fixture
def models_folder(tmp_path: Path) -> Path:
    """A folder with the model `flowers`, which works, and `broken`, which has no weights."""
    for name in ("flowers", "broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.toml").write_text(
            f'architecture = "{ARCHITECTURE}"\nweights = "weights.safetensors"\nclasses = 10\n'
        )
    _write_weights(tmp_path / "flowers", seed=0)
    return tmp_path


@dataclass
class _Crowd:
    """Clients that send requests until they are stopped, each on a connection of its own."""

    address: str
    picture: bytes
    ended: bool = False
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)

    async def client(self) -> None:
        async with httpx2.AsyncClient(base_url=self.address, timeout=60) as http:
            while not self.ended:
                answer = await http.post("/v1/classify?model=flowers&top_k=1", content=self.picture)
                self.answers[answer.status_code, answer.json().get("fingerprint", answer.text)] += 1
                # Leaves time on the cores for the loads.
                await asyncio.sleep(_PAUSE_S)

    async def each_asks_once_more(self) -> None:
        """Return after as many further answers as there are clients."""
        target = self.answers.total() + CLIENTS
        while self.answers.total() < target:  # noqa: ASYNC110 - sixteen clients would have to set an event
            await asyncio.sleep(0.01)


async def _left(process: psutil.Process) -> Vitals:
    """Wait until the connections of all clients are closed on this side too."""
    # Another process's connections have no event to wait for.
    while any(  # noqa: ASYNC110
        to.status != psutil.CONN_LISTEN for to in process.net_connections("tcp")
    ):
        await asyncio.sleep(0.05)
    return _vitals(process)


async def test_sixteen_clients_see_only_new_fingerprints_while_models_are_loaded_and_unloaded(
    start_server: Callable[..., Any],
    models_folder: Path,
    clock_jpeg: bytes,
    metric_sum: Callable[..., float],
) -> None:
    server = start_server(
        GRADLESS_MODELS=str(models_folder / "flowers"),
        GRADLESS_MODELS_FOLDER=str(models_folder),
        GRADLESS_BACKEND="eager",
    )
    process = psutil.Process(server.process.pid)
    crowd = _Crowd(server.address, clock_jpeg)

    async def vitals_after_a_load() -> Vitals:
        """With what one load and one round of requests keep, and no more: a load returns what is free."""
        async with httpx2.AsyncClient(base_url=server.address, timeout=120) as http:
            assert (await http.post("/v1/models/flowers")).status_code == 200
            await asyncio.gather(*(http.post("/v1/classify", content=clock_jpeg) for _ in range(CLIENTS)))
        return await _left(process)

    for _ in range(LOADS_BEFORE):
        before = await vitals_after_a_load()
    served = [httpx2.get(f"{server.address}/v1/models/flowers").json()["fingerprint"]]

    async with httpx2.AsyncClient(base_url=server.address, timeout=120) as http, asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(crowd.client())
        for number in range(1, RELOADS + 1):
            await crowd.each_asks_once_more()
            _write_weights(models_folder / "flowers", seed=number)
            loading = asyncio.create_task(http.post("/v1/models/flowers"))
            while not loading.done():
                assert (await http.get("/readyz")).status_code == 200
                await asyncio.sleep(0.05)
            loaded = await loading
            assert loaded.status_code == 200, loaded.text
            assert loaded.json()["version"] == number + 1 + LOADS_BEFORE
            served.append(loaded.json()["fingerprint"])

            second = await http.post("/v1/models/second", json={"source": "null"})
            assert second.status_code == 201, second.text
            assert (await http.post("/v1/classify?model=second", content=clock_jpeg)).status_code == 200
            assert (await http.delete("/v1/models/second")).status_code == 204
            assert (await http.post("/v1/classify?model=second", content=clock_jpeg)).status_code == 404

            broken = await http.post("/v1/models/flowers", json={"source": "broken"})
            assert broken.json()["type"] == "urn:gradless:problem:model-not-loaded"
            assert "weights.safetensors" in broken.json()["detail"]
        await crowd.each_asks_once_more()
        crowd.ended = True
    after = await vitals_after_a_load()
    exposition = httpx2.get(f"{server.address}/metrics").text

    assert {status for status, _ in crowd.answers} == {200}
    assert len(set(served)) == RELOADS + 1
    assert {fingerprint for _, fingerprint in crowd.answers} == set(served)
    images = metric_sum(exposition, "gradless_images_total", model="flowers", outcome="ok")
    assert images == crowd.answers.total() + (LOADS_BEFORE + 1) * CLIENTS
    assert images == metric_sum(exposition, "gradless_images_total")
    loads = 1 + LOADS_BEFORE + RELOADS + 1
    assert metric_sum(exposition, "gradless_model_loads_total", model="flowers", outcome="ok") == loads
    assert metric_sum(exposition, "gradless_model_loads_total", model="flowers", outcome="failed") == RELOADS
    current = {"model": "flowers", "fingerprint": served[-1], "version": str(loads)}
    assert metric_sum(exposition, "gradless_model_info") == metric_sum(exposition, "gradless_model_info", **current)
    assert 'model="second"' not in exposition
    assert (after.threads, after.descriptors) == (before.threads, before.descriptors)
    assert after.rss_bytes - before.rss_bytes < ALLOWED_GROWTH_BYTES, json.dumps([before, after])


async def test_an_invalid_source_is_refused_and_the_model_stays(
    start_server: Callable[..., Any], models_folder: Path, clock_jpeg: bytes
) -> None:
    inside = models_folder / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(models_folder / "flowers")
    server = start_server(GRADLESS_MODELS="null", GRADLESS_MODELS_FOLDER=str(inside))
    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:
        answers = [
            await http.post("/v1/models/null", json={"source": source})
            for source in ("../flowers", str(models_folder / "flowers"), "link", "flowers", "~")
        ]
        assert {answer.status_code for answer in answers} == {422}
        assert {answer.json()["type"] for answer in answers} == {"urn:gradless:problem:model-not-loaded"}
        assert (await http.get("/v1/models/null")).json()["version"] == 1
        assert (await http.post("/v1/classify", content=clock_jpeg)).status_code == 200
        assert (await http.delete("/v1/models/null")).status_code == 409
