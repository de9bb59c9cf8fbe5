"""Every measured server by name, with its command and engine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.bench import ROOT

MODELS = ("efficientnet_lite0", "resnet50")

# The null model, which measures the server alone.
NULL = "null"

# Names in gradless's catalog. Published weights of resnet50 are a download; random ones are as fast.
CATALOG_NAMES = {"efficientnet_lite0": "efficientnet_lite0", "resnet50": "resnet50:random", NULL: "null"}

_MODULE = "benchmarks.peers."


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A server. {port} in `command` is the port, {pictures} in `environment` the folder of sent pictures. `path` takes
    raw JPEG bodies by POST with `headers` ("Name: value"). `project` runs in the project's environment, others by
    `python` or in the benchmark's. `backend` is one of gradless's, or None for other servers."""

    name: str
    engine: str
    command: tuple[str, ...]
    path: str = "/"
    project: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    python: Path | None = None
    backend: str | None = None
    precision: str = "fp32"
    models: tuple[str, ...] = MODELS

    def arguments(self, project_python: Path, port: int) -> list[str]:
        """The command line."""
        python = project_python if self.project else self.python or sys.executable
        return [str(python), *(part.format(port=port) for part in self.command)]

    def variables(self, model: str, port: int, pictures: Path) -> dict[str, str]:
        """Return the variables to add to this process's environment."""
        peer = {"PEER_MODEL": model, "PEER_PORT": str(port)}
        own = {"GRADLESS_MODELS": CATALOG_NAMES[model], "GRADLESS_PORT": str(port), "GRADLESS_LOG_LEVEL": "warning"}
        further = {name: value.format(pictures=pictures) for name, value in self.environment.items()}
        return {**(own if self.backend else peer), **further}


def _gradless(backend: str, precision: str, **environment: str) -> ServerSpec:
    return ServerSpec(
        name=f"gradless {backend} {precision}",
        engine=f"{backend} {precision}",
        command=("-c", "from app.cli import main; main()", "serve"),
        path="/v1/classify",
        project=True,
        environment={"GRADLESS_BACKEND": backend, "GRADLESS_PRECISION": precision, **environment},
        backend=backend,
        precision=precision,
    )


def _naive() -> ServerSpec:
    return ServerSpec(
        name="naive FastAPI", engine="eager fp32", command=("-m", f"{_MODULE}naive_fastapi"), project=True
    )


def _peer(name: str, *command: str, path: str = "/", **environment: str) -> ServerSpec:
    return ServerSpec(name=name, engine="eager fp32", command=command, path=path, environment=environment)


def _sharing(peer: ServerSpec, backend: str, **environment: str) -> ServerSpec:
    """Return the peer with gradless's decode and one of its backends."""
    return replace(
        peer,
        name=f"{peer.name} + gradless's {backend}",
        engine=SHARED_ENGINES[backend],
        environment={**peer.environment, "PEER_ENGINE": backend, **environment},
        models=(NULL,) if backend == NULL else MODELS,
    )


# The default of `gradless serve` on such machines.
DEFAULT = "gradless openvino fp32"

# The null model in one process, and with two HTTP workers.
NULL_SERVER = "gradless null"
NULL_WORKERS = "gradless null, 2 workers"

SHARED_ENGINES = {backend: f"gradless's {backend} fp32" for backend in ("eager", "openvino", NULL)}

_BENTO = ("-m", "bentoml", "serve", f"{_MODULE}bentoml_peer:HttpService", "--host", "127.0.0.1", "--port", "{port}")

_PEERS = (
    _peer("LitServe", "-m", f"{_MODULE}litserve_peer"),
    _peer("mosec", "-m", f"{_MODULE}mosec_peer", path="/classify"),
    _peer("BentoML", *_BENTO, BENTOML_DO_NOT_TRACK="True", BENTOML_NO_CONFIG="1"),
    _peer("Ray Serve", "-m", f"{_MODULE}ray_peer", RAY_USAGE_STATS_ENABLED="0"),
)

# Triton through nvidia-pytriton, which has an environment of its own: its wheel needs the system's Python.
TRITON_PYTHON = ROOT / ".venv-bench-triton/bin/python"
_TRITON = replace(
    _peer("Triton", "-m", f"{_MODULE}triton_peer", path="/v2/models/classifier/infer"),
    # A raw request: the whole body is the only element of the only input.
    headers=("Inference-Header-Content-Length: 0",),
    python=TRITON_PYTHON,
)

# OpenVINO uses all cores of its process. mosec and Triton have one process for it, and threads or processes that
# decode; LitServe decodes where it runs forwards, and is faster with two processes of one core each.
_ONE_ENGINE = {"PEER_WORKERS": "1", "PEER_THREADS": "2", "PEER_DECODERS": "2"}

# By backend. Not among SERVERS: it takes no raw files. The path is that of a model with the name of the backend's.
MLSERVER_PYTHON = ROOT / ".venv-bench-mlserver/bin/python"
_MLSERVER = replace(
    _peer("MLServer", "-m", f"{_MODULE}mlserver_peer"),
    headers=("Content-Type: application/json",),
    python=MLSERVER_PYTHON,
)
MLSERVERS = {backend: _sharing(_MLSERVER, backend, **_ONE_ENGINE) for backend in ("openvino", NULL)}

SERVERS = {
    spec.name: spec
    for spec in (
        _gradless("openvino", "fp32"),
        _gradless("openvino", "bf16"),
        _gradless("openvino", "int8", GRADLESS_CALIBRATION_FOLDER="{pictures}"),
        _gradless("eager", "fp32"),
        _gradless("eager", "bf16"),
        _gradless("compiled", "fp32"),
        _gradless("compiled", "bf16"),
        # The null model has a backend of its own.
        replace(_gradless("eager", "fp32"), name=NULL_SERVER, engine="null", models=(NULL,)),
        replace(
            _gradless("eager", "fp32", GRADLESS_HTTP_WORKERS="2"), name=NULL_WORKERS, engine="null", models=(NULL,)
        ),
        _naive(),
        *_PEERS,
        *(_sharing(peer, "eager") for peer in _PEERS),
        *(_sharing(peer, backend, **_ONE_ENGINE) for backend in ("openvino", NULL) for peer in (_PEERS[1], _TRITON)),
        *(_sharing(_PEERS[0], backend) for backend in ("openvino", NULL)),
    )
}

PEERS = ("naive FastAPI", *(peer.name for peer in _PEERS))


def chosen(names: list[str]) -> list[ServerSpec]:
    """Return the servers whose name is, or contains, one of `names`, ignoring case; `all`, `default` and `shared`
    (peers with gradless's engines) are groups.

    Raises ValueError for a name without a match.
    """
    found: dict[str, ServerSpec] = {}
    for options in names:
        matches = _matching(options)
        if not matches:
            raise ValueError(f"no server is called {options}; there are {', '.join(SERVERS)}")
        found |= {name: SERVERS[name] for name in matches}
    return [spec for name, spec in SERVERS.items() if name in found]


def _matching(options: str) -> list[str]:
    shared = [name for name, spec in SERVERS.items() if spec.engine in SHARED_ENGINES.values()]
    by_default = [name for name, spec in SERVERS.items() if _by_default(spec)]
    groups = {"all": list(SERVERS), "default": by_default, "shared": shared}
    exact = [name for name in SERVERS if name.lower() == options.lower()]
    return groups.get(options) or exact or [name for name in SERVERS if options.lower() in name.lower()]


def _by_default(spec: ServerSpec) -> bool:
    """Return whether a server is measured only by name: `compiled`, which starts in minutes; peers with the eager
    backend; and what is not installed."""
    if spec.precision == "int8" and importlib.util.find_spec("nncf") is None:
        return False
    if spec.engine in SHARED_ENGINES.values():
        return spec.engine != SHARED_ENGINES["eager"] and (spec.python is None or spec.python.exists())
    return spec.backend != "compiled"
