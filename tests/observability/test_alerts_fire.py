"""Every alert fires during a real fault and clears afterwards.

The rules are the committed ones, with half a second for each minute. Memory pressure is simulated by cgroup files: real
pressure would affect the other tests.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from PIL import Image

from models.images.samples import encode
from observe import PROMETHEUS
from observe.configuration import configure
from observe.processes import Start, free_port, gradless, prometheus

AwaitThat = Callable[[Callable[[], bool]], bool]

FAULTY_SERVER = Path(__file__).with_name("faulty_server.py")
GOOD = encode(Image.new("L", (8, 8)), "PNG")
FEW, MANY = 4, 24
# Memory limit of the simulated container, in bytes.
MEMORY = 10**9
SETTINGS = {
    "GRADLESS_MODELS": "null",
    # Scraped several times per second.
    "GRADLESS_METRICS_MAX_AGE_S": "0",
    "GRADLESS_QUEUE_CAPACITY": "16",
    "GRADLESS_MAX_IMAGES_PER_REQUEST": "16",
    "GRADLESS_MAX_BATCH_SIZE": "4",
    "GRADLESS_DEADLINE_S": "4",
}


def accelerated(folder: Path) -> Path:
    """Write the rules with half a second for each minute of windows and waits, and 3 s for a hanging batch. All other
    thresholds stay."""
    folder.mkdir()
    for path in (PROMETHEUS / "rules").glob("*.yml"):
        rules = re.sub(r"\[(\d+)m\]", lambda found: f"[{500 * int(found[1])}ms]", path.read_text())
        rules = re.sub(r"(?m)^( +for: )(\d+)m$", lambda found: f"{found[1]}{500 * int(found[2])}ms", rules)
        rules = rules.replace("for: 30s", "for: 250ms").replace("[2500ms], 300)", "[2500ms], 2.5)")
        rules = rules.replace("gradless_batch_running_seconds > 30", "gradless_batch_running_seconds > 3")
        (folder / path.name).write_text(rules)
    return folder


class FaultyService:
    """A server with faults on order, and the Prometheus that scrapes it."""

    def __init__(self, folder: Path, start: Start, await_that: AwaitThat) -> None:
        self._folder = folder
        self._start = start
        self._await_that = await_that
        self._order = folder / "order"
        self._control_groups = folder / "control-groups"
        self._place = f"127.0.0.1:{free_port()}"
        self._server = contextlib.ExitStack()
        configuration = configure(folder, self._place, interval_s=0.5, rules=accelerated(folder / "rules"))
        self._stack = contextlib.ExitStack()
        self._prometheus = self._stack.enter_context(prometheus(folder, configuration))

    def start_server(self) -> None:
        self.order("well")
        self.fill_container(0.5)
        settings = SETTINGS | {"GRADLESS_PORT": self._place.split(":")[1]}
        command = [str(FAULTY_SERVER), str(self._order), str(self._control_groups)]
        self._server.enter_context(gradless(self._folder, settings, command, self._start))

    def stop_server(self) -> None:
        self._server.close()

    def end(self) -> None:
        self._server.close()
        self._stack.close()

    def order(self, what: str) -> None:
        self._order.write_text(what)

    def fill_container(self, share: float) -> None:
        """Set the share of the container's memory in use."""
        files = {
            "own": "0::/",
            "memory.max": MEMORY,
            "memory.current": int(share * MEMORY),
            "memory.stat": "inactive_file 0",
        }
        self._control_groups.mkdir(exist_ok=True)
        for name, value in files.items():
            (self._control_groups / name).write_text(f"{value}\n")

    @contextlib.contextmanager
    def load(self, count: int, body: bytes) -> Iterator[None]:
        """Send requests with `body` from `count` clients, one after the other each, until the block ends."""
        stopped = threading.Event()

        def call() -> None:
            with httpx2.Client(base_url=f"http://{self._place}", timeout=15) as http:
                while not stopped.is_set():
                    with contextlib.suppress(httpx2.HTTPError):
                        http.post("/v1/classify?top_k=1", content=body)
                    # Leaves CPU time for the server; nothing is measured.
                    stopped.wait(0.1)

        with ThreadPoolExecutor(count) as clients:
            for _ in range(count):
                clients.submit(call)
            try:
                yield
            finally:
                stopped.set()

    def compare(self) -> None:
        url = f"http://{self._place}/debug/grad-modes?batch_size=2&iterations=1"
        httpx2.post(url, timeout=60).raise_for_status()

    def fire(self, *alerts: str) -> bool:
        """Wait for each of these alerts to have fired; return False at the timeout."""
        missing = set(alerts)

        def none_is_missing() -> bool:
            missing.difference_update(self._prometheus.alerts("firing"))
            return not missing

        return self._await_that(none_is_missing)

    def clear(self) -> bool:
        """Wait until no alert is pending or firing; return False at the timeout."""
        return self._await_that(lambda: not self._prometheus.alerts("pending", "firing"))


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, warm_command: Any, await_that: AwaitThat
) -> Iterator[FaultyService]:
    service = FaultyService(tmp_path_factory.mktemp("service"), warm_command.start, await_that)
    try:
        service.start_server()
        yield service
    finally:
        service.end()


def test_overload_of_a_slow_device(service: FaultyService) -> None:
    with service.load(MANY, GOOD):
        service.order("slow")
        assert service.fire("GradlessSlow", "GradlessQueueGrowing", "GradlessRejecting")
    service.order("well")
    assert service.clear()


def test_forwards_that_fail_run_out_of_memory_or_hang_and_clients_that_send_no_images(service: FaultyService) -> None:
    with service.load(FEW, GOOD):
        service.order("fail")
        assert service.fire("GradlessErrors")
        service.order("out of memory")
        assert service.fire("GradlessOutOfMemory")
        service.order("hang")
        assert service.fire("GradlessBatcherStuck")
        service.order("well")
    with service.load(FEW, b"not an image"):
        assert service.fire("GradlessBadImages")
    assert service.clear()


def test_a_batcher_thread_that_ends_and_a_process_that_ends(service: FaultyService) -> None:
    service.order("die")
    with service.load(FEW, GOOD):
        assert service.fire("GradlessBatcherDead", "GradlessNotReady")
        service.order("well")
        assert service.fire("GradlessModelReplaced")
    assert service.clear()
    service.stop_server()
    assert service.fire("GradlessDown")
    service.start_server()
    assert service.clear()


def test_a_network_that_enables_gradients_itself(service: FaultyService) -> None:
    service.order("gradients")
    service.compare()
    assert service.fire("GradlessRetains")
    service.order("well")
    service.compare()
    assert service.clear()


def test_a_container_that_fills_up(service: FaultyService) -> None:
    service.fill_container(0.97)
    assert service.fire("GradlessDeviceMemory")
    service.fill_container(0.5)
    assert service.clear()


def test_every_alert_is_tested_here() -> None:
    rules = yaml.safe_load((PROMETHEUS / "rules/alerts.yml").read_text())["groups"]
    provoked = re.findall(r'"(Gradless\w+)"', Path(__file__).read_text())
    assert set(provoked) == {rule["alert"] for group in rules for rule in group["rules"]}
