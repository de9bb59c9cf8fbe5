"""A connection that answers image requests at their heads while the server is at capacity."""

from __future__ import annotations

from typing import ClassVar, cast

from starlette.types import Scope

from app.middleware.load_shedding import LoadShedding, Shed
from app.server.connection import BoundedConnection, OnRefusal


def shedding_connection(
    head_timeout_s: float, on_refusal: OnRefusal, shedding: LoadShedding
) -> type[BoundedConnection]:
    """Return a protocol class for uvicorn with the limits of BoundedConnection and the refusals of `shedding`."""
    return _SheddingConnection.with_bounds(head_timeout_s, on_refusal, shedding=shedding)


class _SheddingConnection(BoundedConnection):
    shedding: ClassVar[LoadShedding]

    # Whether the current body belongs to a request that has been refused.
    _shed = False

    def answer_at_head(self) -> bool:
        """Refuse the request if `shedding` decides so."""
        shed = self._refusal() if self.shedding.on else None
        if shed is None:
            return False
        self._shed = True
        self.start_body()
        self.transport.write(shed.answer)
        if shed.last:
            self.transport.close()
        else:
            # The rest of the body is short.
            self.start_receive_timer()
        return True

    def on_chunk_header(self) -> None:
        if not self._shed:
            super().on_chunk_header()

    def on_body(self, body: bytes) -> None:
        if self._shed:
            self.count_as_parsed()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._shed:
            super().on_message_complete()
            return
        self._shed = False
        self.end_body()
        if not self.transport.is_closing():
            self.start_keep_alive()

    def _refusal(self) -> Shed | None:
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        if not self.between_requests():
            # Responses are sent in the order of their requests.
            return None
        path, _, query = self.url.partition(b"?")
        # Paths are compared as sent: the image routes need no decoding, and all others go to the application.
        scope = cast(Scope, self.scope)
        scope.update(method="POST", path=path.decode("ascii", "replace"), raw_path=path, query_string=query)
        keep_alive = self.parser.should_keep_alive() and not self.expect_100_continue
        return self.shedding.shed(scope, self.default_headers(), keep_alive=keep_alive)
