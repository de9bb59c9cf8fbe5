"""Measure what each protocol costs, beside the native routes and MLServer: `python -m benchmarks.protocols`.

All requests are sent by turns in each round, to servers that run side by side.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.api.contracts.tensors import join_elements
from benchmarks import machine, pictures
from benchmarks.bench import ROOT, Bench
from benchmarks.load import Loaded, closed_loop, grpc_closed_loop, require_wrk
from benchmarks.markdown import over_rounds, table
from benchmarks.processes import RunningServer, get, post, running
from benchmarks.servers import DEFAULT, MLSERVER_PYTHON, MLSERVERS, MODELS, NULL, NULL_SERVER, SERVERS, ServerSpec
from observe.processes import free_port
from reliability.protocols import INFER

_log = logging.getLogger("benchmarks.protocols")

_PAGE = ROOT / "benchmarks/results/protocols.md"

_CONNECTIONS = 32
_WARM_UP_S = 1.0

_OWN, _OTHER = "gradless", "MLServer"
_SPECS = {MODELS[0]: (SERVERS[DEFAULT], MLSERVERS["openvino"]), NULL: (SERVERS[NULL_SERVER], MLSERVERS[NULL])}

# JSON before binary tensors is padded to this length, so that one header fits all requests.
HEAD_BYTES = 256
_CLASSES = 5
_JSON = "Content-Type: application/json"


def _json_request(model: str, file: bytes) -> bytes:
    del model
    return json.dumps(_inference({"data": [b64encode(file).decode()]}, binary=False)).encode()


def _binary_request(model: str, file: bytes) -> bytes:
    del model
    tensor = join_elements([file])
    head = json.dumps(_inference({"parameters": {"binary_data_size": len(tensor)}}, binary=True))
    return head.ljust(HEAD_BYTES).encode() + tensor


def _inference(contents: Mapping[str, Any], *, binary: bool) -> dict[str, Any]:
    output = {"name": "probabilities", "parameters": {"classification": _CLASSES, "binary_data": binary}}
    return {"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", **contents}], "outputs": [output]}


def _grpc_request(model: str, file: bytes) -> bytes:
    message: bytes = INFER.request(
        model_name=model,
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [1, 1]}],
        outputs=[{"name": "probabilities", "parameters": {"classification": {"int64_param": _CLASSES}}}],
        raw_input_contents=[join_elements([file])],
    ).SerializeToString()
    return message


def _embedding_request(model: str, file: bytes) -> bytes:
    text = b64encode(file).decode()
    return json.dumps({"model": model, "input": [text], "encoding_format": "base64"}).encode()


@dataclass(frozen=True, slots=True)
class Request:
    """A kind of request to a server: `body` of a model's name and a file, and the name of what it is compared with.
    Without a path it is a gRPC call."""

    name: str
    server: str
    path: str
    body: Callable[[str, bytes], bytes]
    headers: tuple[str, ...] = ()
    against: str = ""


_CLASSIFY, _FEATURES = "/v1/classify", "/v1/features, base64"
_OIP_JSON, _OIP_GRPC = "OIP, JSON with base64", "OIP, gRPC"
_INFER_PATH = "/v2/models/{model}/infer"

REQUESTS = (
    Request(_CLASSIFY, _OWN, "/v1/classify", lambda _, file: file),
    Request(
        "OIP, binary BYTES",
        _OWN,
        _INFER_PATH,
        _binary_request,
        (f"Inference-Header-Content-Length: {HEAD_BYTES}", "Content-Type: application/octet-stream"),
        _CLASSIFY,
    ),
    Request(_OIP_JSON, _OWN, _INFER_PATH, _json_request, (_JSON,), _CLASSIFY),
    Request(_OIP_GRPC, _OWN, "", _grpc_request, (), _CLASSIFY),
    Request(_FEATURES, _OWN, "/v1/features?encoding=base64", lambda _, file: file),
    Request("OpenAI embeddings, base64", _OWN, "/v1/embeddings", _embedding_request, (_JSON,), _FEATURES),
    Request(f"{_OTHER}: {_OIP_JSON}", _OTHER, _INFER_PATH, _json_request, (_JSON,), _OIP_JSON),
    Request(f"{_OTHER}: {_OIP_GRPC}", _OTHER, "", _grpc_request, (), _OIP_GRPC),
)

# The load of each round, by request.
Measured = Mapping[str, Sequence[Loaded]]


class Site:
    """The servers of one model, and the files of every kind of request."""

    def __init__(self, model: str, folder: Path, stack: ExitStack) -> None:
        self._model = model
        drawn = folder / "500x375"
        self._bodies = {request.name: self._written(request, drawn, folder / model) for request in REQUESTS}
        self._servers: dict[str, RunningServer] = {}
        self._grpc: dict[str, str] = {}
        self.other_version = ""
        own, other = _SPECS[model]
        self._start(own, _OWN, _CLASSIFY, folder, stack)
        if MLSERVER_PYTHON.exists():
            other = replace(other, path=_INFER_PATH.format(model=model))
            self._start(other, _OTHER, _OIP_JSON, folder, stack)
            self.other_version = json.loads(get(self._servers[_OTHER].at("/v2").url))["version"]
            self._compare_answers()

    def _written(self, request: Request, drawn: Path, folder: Path) -> list[Path]:
        of = folder / request.name.replace("/", "-").replace(" ", "-")
        of.mkdir(parents=True)
        for file in sorted(drawn.iterdir()):
            (of / file.name).write_bytes(request.body(self._model, file.read_bytes()))
        return sorted(of.iterdir())

    def _start(self, spec: ServerSpec, name: str, first_request: str, folder: Path, stack: ExitStack) -> None:
        port = str(free_port())
        spec = replace(spec, environment={**spec.environment, "GRADLESS_GRPC_PORT": port, "PEER_GRPC_PORT": port})
        bench = Bench({"": self._bodies[first_request]}, Path(sys.executable), folder / "logs")
        self._servers[name] = stack.enter_context(running(spec, self._model, bench))
        self._grpc[name] = f"127.0.0.1:{port}"

    def _compare_answers(self) -> None:
        """Raise RuntimeError unless both servers answer with the same classes."""
        body, path = self._bodies[_OIP_JSON][0].read_bytes(), _INFER_PATH.format(model=self._model)
        answers = [json.loads(post(server.at(path).url, body, headers=[_JSON])) for server in self._servers.values()]
        texts = [answer["outputs"][0]["data"] for answer in answers]
        own, other = ([text.split(":")[1] for text in each] for each in texts)
        if own != other:
            raise RuntimeError(f"the servers answer with different classes: {texts}")

    @property
    def requests(self) -> list[Request]:
        return [request for request in REQUESTS if request.server in self._servers]

    def load(self, request: Request, seconds: float) -> Loaded:
        """Send requests of one kind for `seconds`. Raises RuntimeError if one is not answered with success."""
        server, bodies = self._servers[request.server], self._bodies[request.name]
        if request.path:
            at = server.at(request.path.format(model=self._model), request.headers)
            loaded = closed_loop(at, bodies, connections=_CONNECTIONS, seconds=seconds)
        else:
            address = self._grpc[request.server]
            loaded = grpc_closed_loop(server, address, INFER.path, bodies, connections=_CONNECTIONS, seconds=seconds)
        if not loaded.report["statuses"].keys() <= {"200", "OK"}:
            raise RuntimeError(f"{request.name}: requests were answered with {loaded.report['statuses']}")
        return loaded


def _measured(site: Site, rounds: int, seconds: float) -> Measured:
    found: defaultdict[str, list[Loaded]] = defaultdict(list)
    for request in site.requests:
        site.load(request, _WARM_UP_S)
    for number in range(1, rounds + 1):
        for request in site.requests:
            found[request.name].append(site.load(request, seconds))
        rates = {name: round(loads[-1].report["steady_per_second"], 1) for name, loads in found.items()}
        _log.info("round %d: %s", number, rates)
    return found


def _rate(loaded: Loaded) -> float:
    rate: float = loaded.report["steady_per_second"]
    return rate


def _server_ms(loaded: Loaded) -> float:
    succeeded: int = loaded.report["succeeded"]
    return loaded.server_cpu_seconds / max(1, succeeded) * 1e3


def _client_ms(loaded: Loaded) -> float:
    client_s, server_s = loaded.client_cpu_share, loaded.server_cpu_share
    return _server_ms(loaded) * client_s / server_s


def _ratios(found: Measured, request: Request, of: Callable[[Loaded], float]) -> str:
    """Return the ratio to what the request is compared with, in the same round."""
    pairs = zip(found[request.name], found.get(request.against, ()), strict=False)
    return over_rounds(of(one) / of(other) for one, other in pairs)


def rows(found: Measured) -> list[list[str]]:
    """Return the cells of each request of one model."""
    return [
        [
            request.name,
            request.against,
            over_rounds(map(_rate, loads)),
            _ratios(found, request, _rate),
            over_rounds(loaded.report["p50_ms"] for loaded in loads),
            over_rounds(loaded.report["p99_ms"] for loaded in loads),
            over_rounds(map(_server_ms, loads)),
            _ratios(found, request, _server_ms),
            over_rounds(map(_client_ms, loads)),
        ]
        for request in REQUESTS
        if (loads := found.get(request.name))
    ]


def _page(found: Mapping[str, Measured], described: Mapping[str, Any], other: str, command: str) -> str:
    head = ["request", "against", "images/s", "ratio", "p50 ms", "p99 ms", "CPU ms an image", "ratio", "of the client"]
    lines = [
        "# The cost of protocols",
        "",
        f"A JPEG of 500 x 375 in each request, {_CONNECTIONS} connections, load on the same cores. All requests take",
        "turns in each round. Medians, with least and largest; ratios are to the request in the column *against*, in",
        "the same round. CPU times are of all processes of the server, and of the client.",
        "",
        "- Classes are asked for as the five likeliest, embeddings as base64. OIP is the Open Inference Protocol.",
        "- HTTP is sent by wrk. gRPC is sent by grpc.aio, which takes far more of the cores: compare its server's CPU",
        "  time, and its images/s only with those of another server over gRPC.",
        f"- {other} has gradless's decode and backend in batches of up to 8, in a process beside the one that answers.",
        "  gradless is one process. Both get the same bytes. MLServer's REST API has no binary tensors.",
    ]
    for model, of_model in found.items():
        lines += ["", f"## {model}", "", *table(head, rows(of_model))]
    lines += [
        "",
        f"grpcio {version('grpcio')}, {other}, wrk {described['wrk']};",
        *machine.lines(described, (), command),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocols", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    parser.add_argument("--out", type=Path, default=_PAGE, help="page to write")
    options = parser.parse_args()
    try:
        require_wrk()
    except RuntimeError as error:
        sys.exit(f"benchmarks: {error}")
    if not MLSERVER_PYTHON.exists():
        _log.warning("MLServer is left out: `make protocols` installs it")
    described, other = machine.describe([], {}), _OTHER
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures.draw_all(folder)
        for model in _SPECS:
            with ExitStack() as stack:
                site = Site(model, folder, stack)
                other = f"{_OTHER} {site.other_version}".strip()
                found[model] = _measured(site, options.rounds, options.seconds)
    command = f"python -m benchmarks.protocols --rounds {options.rounds} --seconds {options.seconds}"
    options.out.write_text(_page(found, described, other, command), encoding="utf-8")
    _log.info("written: %s", options.out)


if __name__ == "__main__":
    main()
