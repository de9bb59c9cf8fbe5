"""docs/deployment.md: its nginx in front of a real server, and its upgrade and rollback of a model."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from app.settings import Settings
from observe.processes import free_port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deployment.md").read_text()
NGINX = (ROOT / "docker/nginx/gradless.conf").read_text()
HOST = "images.example.com"
KEY = "0123456789abcdef"

# Debian's is in a folder that only root has on the path.
nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def directive(name: str) -> str:
    [value] = re.findall(rf"^\s*{name} (.*);$", NGINX, re.MULTILINE)
    return str(value)


def test_nginx_allows_the_largest_body_and_waits_for_longer_than_the_deadline() -> None:
    assert int(directive("client_max_body_size").removesuffix("m")) * 2**20 == Settings().max_request_bytes
    assert int(directive("proxy_read_timeout").removesuffix("s")) > Settings().deadline_s


def test_nginx_sets_the_header_without_which_every_client_would_be_local() -> None:
    assert "X-Forwarded-For $remote_addr" in re.findall(r"proxy_set_header (.*);", NGINX)


class Proxy(NamedTuple):
    """A running nginx: its ports, and the certificate of HOST."""

    plain: int
    tls: int
    certificate: Path

    def ask(self, *arguments: str, scheme: str = "https") -> tuple[int, str]:
        """Return the status and the body of a request by curl, whose last argument is the path."""
        port = self.tls if scheme == "https" else self.plain
        *options, path = arguments
        command = ["curl", "--silent", "--cacert", self.certificate, "--resolve", f"{HOST}:{port}:127.0.0.1"]
        address = f"{scheme}://{HOST}:{port}{path}"
        shown = ["--write-out", "\n%{http_code}", *options, address]
        body, status = subprocess.run([*command, *shown], capture_output=True, text=True, check=True).stdout.rsplit(
            "\n", 1
        )
        return int(status), body


@pytest.fixture
def proxy(start_server: Callable[..., Any], tmp_path: Path) -> Iterator[Proxy]:
    """The documented configuration in front of a server with a key, with ports and a certificate of this test."""
    if nginx is None:
        pytest.skip("nginx is not installed")
    server = start_server("null", "--allowed-hosts", HOST, GRADLESS_API_KEYS=KEY)
    proxy = Proxy(free_port(), free_port(), tmp_path / "certificate.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", tmp_path / "key.pem", "-out", proxy.certificate]
    named = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    subprocess.run([*made, *files, *named], check=True, capture_output=True)
    own = {
        r"listen \[::\].*;": "",
        r"listen 80;": f"listen 127.0.0.1:{proxy.plain};",
        r"listen 443 ssl;": f"listen 127.0.0.1:{proxy.tls} ssl;",
        r"server 127\.0\.0\.1:8000;": f"server 127.0.0.1:{server.port};",
        r"ssl_certificate .*;": f"ssl_certificate {proxy.certificate};",
        r"ssl_certificate_key .*;": f"ssl_certificate_key {tmp_path}/key.pem;",
    }
    text = NGINX
    for pattern, replacement in own.items():
        text, replaced = re.subn(pattern, replacement, text)
        assert replaced, pattern
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = tmp_path / "nginx.conf"
    # Its workers may write to the folders of this test.
    main = f"user {getpass.getuser()};\nerror_log {tmp_path}/log;\npid {tmp_path}/pid;\nevents {{}}\n"
    configuration.write_text(f"{main}http {{\naccess_log off;\n{temporary}{text}}}\n")
    command = [nginx, "-p", tmp_path, "-e", tmp_path / "log", "-c", configuration]
    # It returns once it listens, and goes on in the background.
    subprocess.run(command, check=True, capture_output=True)
    yield proxy
    subprocess.run([*command, "-s", "stop"], check=True, capture_output=True)


def test_nginx_terminates_tls_and_lets_pass_what_the_service_accepts(
    proxy: Proxy, tmp_path: Path, clock_jpeg: bytes
) -> None:
    assert proxy.ask("/readyz", scheme="http")[0] == 301
    assert proxy.ask("/readyz")[0] == 200
    (tmp_path / "clock.jpg").write_bytes(clock_jpeg)
    # Larger than what nginx accepts by itself: the answer comes from the service.
    (tmp_path / "large.jpg").write_bytes(clock_jpeg + bytes(4 * 2**20))
    for name in ("clock.jpg", "large.jpg"):
        body = f"@{tmp_path / name}"
        assert proxy.ask("--data-binary", body, "/v1/classify")[0] == 401
        status, answer = proxy.ask("--data-binary", body, "-H", f"X-API-Key: {KEY}", "/v1/classify?top_k=1")
        assert (status, json.loads(answer)["model"]) == (200, "null")
    # No client of nginx counts as local.
    status, problem = proxy.ask("-X", "POST", "/debug/grad-modes")
    assert (status, json.loads(problem)["type"]) == (401, "urn:gradless:problem:unauthorized")


def test_a_model_is_upgraded_and_rolled_back_by_the_documented_commands(
    start_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for version in (1, 2):
        folder = tmp_path / f"deployed/flowers-{version}"
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(
            f'architecture = "shufflenet_v2_x0_5"\nweights = "random"\nclasses = {version + 1}\n'
        )
    section = PAGE.split("## Upgrade and roll back a model\n")[1]
    start, upgrade, back = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[:3]
    link, serve = start.splitlines()
    subprocess.run(["sh", "-ec", link], check=True)
    server = start_server(*serve.removeprefix("gradless serve ").split(), GRADLESS_BACKEND="eager")

    def classes() -> int:
        [card] = httpx2.get(f"{server.address}/v1/models").json()["models"]
        assert card["name"] == "flowers"
        return int(card["classes"])

    assert classes() == 2
    for commands, expected in ((upgrade, 3), (back, 2)):
        here = [line for line in commands.splitlines() if not line.startswith("gradless models check ")]
        script = "\n".join(here).replace("http://127.0.0.1:8000", server.address).replace("curl ", "curl -sSf ")
        done = subprocess.run(["sh", "-ec", script], check=True, capture_output=True)
        assert json.loads(done.stdout)["classes"] == expected
        assert classes() == expected
