"""Everything that app.server uses of uvicorn beyond its documented interface.

pyproject.toml pins uvicorn to the versions that this list was tested with. A test compares the list with the installed
version and with the code of app.server.
"""

from __future__ import annotations

from collections.abc import Mapping

from uvicorn import Server
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

# Overridden methods, with the names of their parameters.
OVERRIDDEN: Mapping[type, Mapping[str, tuple[str, ...]]] = {
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
    Server: {
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
            "timeout_keep_alive_handler",
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
    Server: frozenset({"config", "force_exit", "lifespan", "server_state", "servers", "should_exit", "started"}),
}
