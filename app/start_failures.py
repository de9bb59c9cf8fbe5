"""Why models did not start, told in one line by whoever runs the application's lifespan."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dependencies import Parts


class PlainStartFailures:
    """Says it in one line, where Starlette sends a traceback."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_plain(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self._parts.start_error is not None:
                message["message"] = f"cannot start: {self._parts.start_error}"
            await send(message)

        await self._app(scope, receive, send_plain)
