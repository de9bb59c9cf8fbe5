"""The image's own commands, run as by a container engine: as process 1, as an unprivileged user, on a read-only root,
without capabilities or a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from app.process.lifetime import FORCED_AFTER_DRAIN_S

CLASSIFY = """
import sys, urllib.request
image = sys.stdin.buffer.read()
print(urllib.request.urlopen("http://127.0.0.1:8000/v1/classify?top_k=1", image).read().decode())
"""

LOAD = """
import urllib.request
source = b'{"source": "my-model"}'
print(urllib.request.urlopen("http://127.0.0.1:8000/v1/models/my-model", source).read().decode())
"""

# Sends the second half of its image only after a line on stdin.
SLOWLY = """
import socket, sys
with socket.create_connection(("127.0.0.1", 8000)) as connection:
    connection.sendall(b"POST /v1/classify HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n.")
    print("half", flush=True)
    sys.stdin.readline()
    connection.sendall(b".")
    print(connection.recv(12).decode())
"""

# Starts the command in its arguments, asks it about the image on stdin as SageMaker does, and ends it by SIGTERM with
# half a request on its way.
SAGEMAKER = """
import json, socket, subprocess, sys, time, urllib.request

def ask(path, body=None, timeout=2):
    with urllib.request.urlopen(f"http://127.0.0.1:8080{path}", body, timeout) as answer:
        return answer.status, json.load(answer)

service = subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL)
ping = None
while ping is None and service.poll() is None:
    try:
        ping = ask("/ping")
    except OSError:
        time.sleep(0.05)
invocation = ask("/invocations", sys.stdin.buffer.read(), timeout=60)
with socket.create_connection(("127.0.0.1", 8080)) as connection:
    connection.sendall(b"POST /invocations HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n.")
    # It answers on another connection, so it has read the half.
    ask("/ping", timeout=60)
    began = time.monotonic()
    service.terminate()
    status = service.wait()
print(json.dumps([ping, invocation, status, time.monotonic() - began]))
"""


def test_it_serves_the_embedded_model_on_a_read_only_root_without_privileges_or_network(
    container: Any, clock_png: bytes
) -> None:
    done = container.run("python", "-c", CLASSIFY, stdin=clock_png)
    [result] = json.loads(done.stdout)["results"]
    assert result["predictions"][0]["label"] == "analog clock"


def test_its_start_converts_nothing_and_logs_no_warning(container: Any) -> None:
    # Not the requests of other tests: a slow one is a warning.
    start = [line for line in container.log.splitlines() if '"event": "request"' not in line]
    assert any('"event": "serving"' in line for line in start)
    assert not any('"level": "warning"' in line for line in start)
    assert '"level": "error"' not in container.log


def test_only_tmp_is_writable_in_the_container_of_these_tests(container: Any) -> None:
    def status(path: str) -> int:
        returned: int = container.run("sh", "-c", f"echo > {path}").returncode
        return returned

    assert status("/tmp/written") == 0  # noqa: S108 - inside
    assert all(status(f"{folder}/written") for folder in ("", "/opt/gradless", "/var/cache/gradless", "/var/tmp"))  # noqa: S108
    assert b"\nCapEff:\t0000000000000004\n" in container.run("cat", "/proc/1/status").stdout
    assert b"\nUid:\t10001\t" in container.run("cat", "/proc/1/status").stdout


def test_the_health_check_passes_while_the_service_is_ready(container: Any, dockerfile: Any) -> None:
    # Not /healthz, which is 200 before models are loaded and during a drain.
    assert "'/readyz'" in dockerfile.health_check("cpu")[-1]
    assert container.run(*dockerfile.health_check("cpu")).returncode == 0


def test_the_health_check_uses_no_proxy(container: Any, dockerfile: Any) -> None:
    proxy = ["env", "http_proxy=http://127.0.0.1:9", "HTTP_PROXY=http://127.0.0.1:9"]
    assert container.run(*proxy, *dockerfile.health_check("cpu")).returncode == 0


def test_it_exposes_the_metric_of_the_kubernetes_autoscaler(container: Any) -> None:
    scrape = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    assert (
        b'\ngradless_queue_depth{device="cpu",model="efficientnet_lite0"} '
        in container.run("python", "-c", scrape).stdout
    )


def test_the_health_check_fails_without_a_listener(dockerfile: Any) -> None:
    command = [sys.executable, *dockerfile.health_check("cpu")[1:]]
    done = subprocess.run(command, env=os.environ | {"GRADLESS_PORT": "9"}, capture_output=True, check=False)
    assert done.returncode == 1


def test_a_model_of_your_own_is_served_from_a_folder_that_is_mounted_read_only(
    container: Any, clock_png: bytes
) -> None:
    loaded = container.run("python", "-c", LOAD)
    assert json.loads(loaded.stdout)["name"] == "my-model", loaded.stderr
    done = container.run("python", "-c", CLASSIFY.replace("top_k=1", "top_k=1&model=my-model"), stdin=clock_png)
    [result] = json.loads(done.stdout)["results"]
    assert result["predictions"][0]["label"] in {"cat", "dog", "fox"}


def test_sagemaker_gets_its_ping_its_invocations_and_an_end_within_the_drain_timeout(
    container: Any, dockerfile: Any, clock_png: bytes
) -> None:
    drain_s = 0.5
    settings = ["GRADLESS_PORT=8080", "GRADLESS_MODELS=/opt/ml/model", f"GRADLESS_DRAIN_TIMEOUT_S={drain_s}"]
    entrypoint = json.loads(dockerfile.values("cpu", "ENTRYPOINT")[-1])
    command = ["env", *settings, "python", "-c", SAGEMAKER, *entrypoint, "serve"]
    done = container.run(*command, stdin=clock_png)

    assert done.returncode == 0, done.stderr
    (ping, invocation, status, ended_after_s) = json.loads(done.stdout)
    assert ping[0] == 200
    [scores] = invocation[1]["predictions"]
    assert scores.keys() == {"cat", "dog", "fox"}
    # Not by force.
    assert status == 0
    assert ended_after_s < drain_s + FORCED_AFTER_DRAIN_S / 2


# Last of the tests that share the container, because it stops it.
def test_sigterm_to_process_1_drains_and_ends_with_success(container: Any, dockerfile: Any) -> None:
    [stop_signal] = dockerfile.values("cpu", "STOPSIGNAL")
    client = container.start("python", "-c", SLOWLY)
    assert client.stdout.readline() == b"half\n"
    os.kill(container.process, signal.Signals[stop_signal])
    container.wait_until_it_says("answering what was accepted")
    assert container.run(*dockerfile.health_check("cpu")).returncode == 1

    # The answer is an error: two bytes are no image, or the server is draining.
    answer, _ = client.communicate(b"\n")
    assert answer.startswith(b"HTTP/1.1 ")
    assert container.exit_status() == 0
