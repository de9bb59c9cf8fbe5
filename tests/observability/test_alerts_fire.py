"""Every alert, on the real thing: it fires when that goes wrong, and clears when it is well.

The rules are the committed ones, with half a second for each of their minutes. Memory is taken from a container that
there is in the kernel's files alone: one that took the machine's would take it from the other tests too.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import yaml
from PIL import Image

from models.images.samples import encode
from observe.configuration import configure
from observe.places import PROMETHEUS
from observe.processes import free_port, gradless, prometheus

pytestmark = pytest.mark.timeout(300)

AwaitThat = Callable[[Callable[[], bool]], bool]

FAULTY_SERVER = Path(__file__).with_name("faulty_server.py")
GOOD = encode(Image.new("L", (8, 8)), "PNG")
FEW, MANY = 4, 24
# Of the container, in bytes.
MEMORY = 10**9
SETTINGS = {
    "GRADLESS_MODELS": "null",
    # Scraped several times a second.
    "GRADLESS_METRICS_MAX_AGE_S": "0",
    "GRADLESS_QUEUE_CAPACITY": "16",
    "GRADLESS_MAX_IMAGES_PER_REQUEST": "16",
    "GRADLESS_MAX_BATCH_SIZE": "4",
    "GRADLESS_DEADLINE_S": "4",
}


def hastened(folder: Path) -> Path:
    """The rules, with half a second for each minute of their windows and waits, so that alerts come and go while one
    looks on; a batch hangs after three seconds. All other thresholds stay."""
    folder.mkdir()
    for path in (PROMETHEUS / "rules").glob("*.yml"):
        rules = re.sub(r"\[(\d+)m\]", lambda found: f"[{500 * int(found[1])}ms]", path.read_text())
        rules = re.sub(r"(?m)^( +for: )(\d+)m$", lambda found: f"{found[1]}{500 * int(found[2])}ms", rules)
        rules = rules.replace("for: 30s", "for: 250ms").replace("[2500ms], 300)", "[2500ms], 2.5)")
        rules = rules.replace("gradless_batch_running_seconds > 30", "gradless_batch_running_seconds > 3")
        (folder / path.name).write_text(rules)
    return folder


class Scene:
    """A server to be put in trouble, and Prometheus, who watches."""

    def __init__(self, folder: Path, await_that: AwaitThat) -> None:
        self._folder = folder
        self._await_that = await_that
        self._order = folder / "order"
        self._control_groups = folder / "control-groups"
        self._place = f"127.0.0.1:{free_port()}"
        self._server = contextlib.ExitStack()
        configuration = configure(folder, self._place, every_s=0.5, rules=hastened(folder / "rules"))
        self._watching = contextlib.ExitStack()
        self._watched = self._watching.enter_context(prometheus(folder, configuration))

    def start_server(self) -> None:
        self.order("well")
        self.fill_container(0.5)
        settings = SETTINGS | {"GRADLESS_PORT": self._place.split(":")[1]}
        command = [sys.executable, str(FAULTY_SERVER), str(self._order), str(self._control_groups)]
        self._server.enter_context(gradless(self._folder, settings, command))

    def stop_server(self) -> None:
        self._server.close()

    def end(self) -> None:
        self._server.close()
        self._watching.close()

    def order(self, what: str) -> None:
        self._order.write_text(what)

    def fill_container(self, share: float) -> None:
        """Have so much of its memory taken."""
        told = {
            "own": "0::/",
            "memory.max": MEMORY,
            "memory.current": int(share * MEMORY),
            "memory.stat": "inactive_file 0",
        }
        self._control_groups.mkdir(exist_ok=True)
        for name, value in told.items():
            (self._control_groups / name).write_text(f"{value}\n")

    @contextlib.contextmanager
    def called_by(self, count: int, body: bytes) -> Iterator[None]:
        """So many callers, each with its next request as soon as the last has an answer, or none."""
        enough = threading.Event()

        def call() -> None:
            with httpx2.Client(base_url=f"http://{self._place}", timeout=15) as http:
                while not enough.is_set():
                    with contextlib.suppress(httpx2.HTTPError):
                        http.post("/v1/classify?top_k=1", content=body)
                    # Nothing is measured: the server needs room on the same cores.
                    enough.wait(0.02)

        with ThreadPoolExecutor(count) as callers:
            for _ in range(count):
                callers.submit(call)
            try:
                yield
            finally:
                enough.set()

    def look_through_the_lens(self) -> None:
        url = f"http://{self._place}/debug/grad-modes?batch_size=2&iterations=1"
        httpx2.post(url, timeout=60).raise_for_status()

    def fire(self, *alerts: str) -> bool:
        """Whether all of these come to fire, be it one after another."""
        missing = set(alerts)

        def none_is_missing() -> bool:
            missing.difference_update(self._watched.alerts("firing"))
            return not missing

        return self._await_that(none_is_missing)

    def clear(self) -> bool:
        """Whether no alert fires any more, or will."""
        return self._await_that(lambda: not self._watched.alerts("pending", "firing"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, await_that: AwaitThat) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("scene"), await_that)
    try:
        scene.start_server()
        yield scene
    finally:
        scene.end()


def test_more_callers_than_a_slow_device_can_serve(scene: Scene) -> None:
    with scene.called_by(MANY, GOOD):
        scene.order("slow")
        assert scene.fire("GradlessSlow", "GradlessQueueGrowing", "GradlessRejecting")
    scene.order("well")
    assert scene.clear()


def test_forwards_that_fail_for_want_of_memory_or_do_not_end_and_callers_who_send_no_images(scene: Scene) -> None:
    with scene.called_by(FEW, GOOD):
        scene.order("fail")
        assert scene.fire("GradlessErrors")
        scene.order("out of memory")
        assert scene.fire("GradlessOutOfMemory")
        scene.order("hang")
        assert scene.fire("GradlessBatcherStuck")
        scene.order("well")
    with scene.called_by(FEW, b"this is no image"):
        assert scene.fire("GradlessBadImages")
    assert scene.clear()


def test_a_thread_that_is_killed_and_a_process_that_ends(scene: Scene) -> None:
    scene.order("die")
    with scene.called_by(FEW, GOOD):
        assert scene.fire("GradlessBatcherDead", "GradlessNotReady")
        scene.order("well")
        assert scene.fire("GradlessModelReplaced")
    assert scene.clear()
    scene.stop_server()
    assert scene.fire("GradlessDown")
    scene.start_server()
    assert scene.clear()


def test_a_network_that_switches_gradients_on_by_itself(scene: Scene) -> None:
    scene.order("gradients")
    scene.look_through_the_lens()
    assert scene.fire("GradlessRetains")
    scene.order("well")
    scene.look_through_the_lens()
    assert scene.clear()


def test_a_container_that_fills_up(scene: Scene) -> None:
    scene.fill_container(0.97)
    assert scene.fire("GradlessDeviceMemory")
    scene.fill_container(0.5)
    assert scene.clear()


def test_no_alert_is_left_that_nothing_here_makes_fire() -> None:
    rules = yaml.safe_load((PROMETHEUS / "rules/alerts.yml").read_text())["groups"]
    provoked = re.findall(r'"(Gradless\w+)"', Path(__file__).read_text())
    assert set(provoked) == {rule["alert"] for group in rules for rule in group["rules"]}
