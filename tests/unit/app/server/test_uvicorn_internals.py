"""app.server uses these internals of uvicorn, beyond its documented interface, and no others.

pyproject.toml pins uvicorn to the versions that these lists were tested with.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

import app
import app.workers.http_worker
from app.server.connection import BoundedConnection
from app.server.server import Server

_APP = Path(app.__file__).parent

# Overridden methods, with the names of their parameters.
OVERRIDDEN: Mapping[type, dict[str, tuple[str, ...]]] = {
    HttpToolsProtocol: {
        "connection_made": ("self", "transport"),
        "connection_lost": ("self", "exc"),
        "pause_writing": ("self",),
        "resume_writing": ("self",),
        "data_received": ("self", "data"),
        "on_header": ("self", "name", "value"),
        "on_headers_complete": ("self",),
        "on_body": ("self", "body"),
        "on_message_complete": ("self",),
        "on_response_complete": ("self",),
        "shutdown": ("self",),
    },
    uvicorn.Server: {
        "serve": ("self", "sockets"),
        "startup": ("self", "sockets"),
        "shutdown": ("self", "sockets"),
        "handle_exit": ("self", "sig", "frame"),
        "on_tick": ("self", "counter"),
    },
}

# Parameters with which connections are created.
PROTOCOL_PARAMETERS = ("self", "config", "server_state", "app_state", "_loop")

# Attributes and methods that are read, set or called.
ATTRIBUTES: Mapping[type, frozenset[str]] = {
    HttpToolsProtocol: frozenset(
        {
            "_unset_keepalive_if_required",
            "client",
            "cycle",
            "expect_100_continue",
            "flow",
            "headers",
            "loop",
            "parser",
            "pipeline",
            "scope",
            "server_state",
            "timeout_keep_alive",
            "timeout_keep_alive_task",
            "transport",
            "url",
        }
    ),
    RequestResponseCycle: frozenset(
        {"disconnected", "keep_alive", "message_event", "response_complete", "response_started"}
    ),
    FlowControl: frozenset({"pause_reading", "resume_reading"}),
    ServerState: frozenset({"connections", "default_headers"}),
    uvicorn.Server: frozenset(
        {"config", "force_exit", "lifespan", "server_state", "servers", "should_exit", "started"}
    ),
}


async def _answer(_scope: object, _receive: object, _send: object) -> None: ...


@pytest.fixture
async def instances() -> dict[type, object]:
    """One object of each listed class, in the state after a request head."""
    config = uvicorn.Config(_answer, log_config=None, lifespan="off")
    config.load()
    protocol = HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    protocol.connection_made(asyncio.Transport())
    protocol.parser.feed_data(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
    await asyncio.gather(*protocol.tasks, return_exceptions=True)
    return {
        HttpToolsProtocol: protocol,
        RequestResponseCycle: protocol.cycle,
        FlowControl: protocol.flow,
        ServerState: protocol.server_state,
        uvicorn.Server: uvicorn.Server(config),
    }


@pytest.mark.anyio
async def test_the_installed_uvicorn_has_every_listed_attribute(instances: dict[type, object]) -> None:
    missing = {
        (kind.__name__, name) for kind, names in ATTRIBUTES.items() for name in names if not _has(instances[kind], name)
    }
    assert not missing


def test_overridden_methods_have_the_listed_parameters_in_the_installed_uvicorn() -> None:
    found = {
        kind: {name: tuple(inspect.signature(getattr(kind, name)).parameters) for name in methods}
        for kind, methods in OVERRIDDEN.items()
    }
    assert found == OVERRIDDEN
    assert tuple(inspect.signature(HttpToolsProtocol.__init__).parameters) == PROTOCOL_PARAMETERS


@pytest.mark.parametrize(("base", "child"), [(HttpToolsProtocol, BoundedConnection), (uvicorn.Server, Server)])
def test_every_overridden_method_is_listed(base: type, child: type) -> None:
    classes = [child, *(kind for kind in child.__subclasses__() if kind.__module__.startswith("app."))]
    own = {name for kind in classes for name in vars(kind) if hasattr(base, name) and not name.startswith("__")}
    assert own == set(OVERRIDDEN[base])


@pytest.mark.anyio
async def test_every_used_attribute_is_listed(instances: dict[type, object]) -> None:
    protocol, server = instances[HttpToolsProtocol], instances[uvicorn.Server]
    used = {
        HttpToolsProtocol: _used("server/connection.py", "self", protocol),
        RequestResponseCycle: _used("server/*.py", "self.cycle", instances[RequestResponseCycle]),
        FlowControl: _used("server/*.py", "self.flow", instances[FlowControl]),
        ServerState: _used("server/*.py", "self.server_state", instances[ServerState])
        | _used("workers/*.py", "self.server_state", instances[ServerState]),
        uvicorn.Server: _used("server/server.py", "self", server),
    }
    unlisted = {
        (kind.__name__, name)
        for kind, names in used.items()
        for name in names - ATTRIBUTES[kind] - set(OVERRIDDEN.get(kind, ()))
    }
    assert not unlisted


def _used(modules: str, expression: str, instance: object) -> set[str]:
    """Return the attributes of `instance` that these modules use on `expression`."""
    return {name for path in _APP.glob(modules) for name in _attributes(path, expression) if _has(instance, name)}


def _has(instance: object, name: str) -> bool:
    # Some attributes of a server are first set when it starts.
    return hasattr(instance, name) or f"self.{name} = " in _source(type(instance))


@cache
def _source(kind: type) -> str:
    return inspect.getsource(kind)


def _attributes(path: Path, expression: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == expression:
            yield node.attr


def test_pyproject_pins_uvicorn_to_the_installed_minor_version() -> None:
    project = tomllib.loads((_APP.parent / "pyproject.toml").read_text())["project"]
    major, minor = version("uvicorn").split(".")[:2]
    assert f"uvicorn>={major}.{minor},<{major}.{int(minor) + 1}" in project["dependencies"]
