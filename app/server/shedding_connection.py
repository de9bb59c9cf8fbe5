"""A connection that, in a full house, answers requests for images at their headers by itself."""

from __future__ import annotations

from typing import ClassVar, cast

from starlette.types import Scope

from app.middleware.load_shedding import LoadShedding, Shed
from app.server.connection import BoundedConnection, OnRefusal


def shedding_connection(
    head_timeout_s: float, on_refusal: OnRefusal, shedding: LoadShedding
) -> type[BoundedConnection]:
    """The protocol class of a server: app.server.connection's bounds, and what `shedding` refuses."""
    return _SheddingConnection.with_bounds(head_timeout_s, on_refusal, shedding=shedding)


class _SheddingConnection(BoundedConnection):
    shedding: ClassVar[LoadShedding]

    # The request whose body comes has its answer.
    _shed = False

    def answered_at_head(self) -> bool:
        """Refuse the request where `shedding` does."""
        shed = self._refusal() if self.shedding.on else None
        if shed is None:
            return False
        self._shed = True
        self.end_head()
        self.transport.write(shed.answer)
        if shed.last:
            self.transport.close()
        else:
            # The rest of the body, which is short.
            self.expect()
        return True

    def on_chunk_header(self) -> None:
        if not self._shed:
            super().on_chunk_header()

    def on_body(self, body: bytes) -> None:
        if self._shed:
            self.told()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._shed:
            super().on_message_complete()
            return
        self._shed = False
        self.end_body()
        if not self.transport.is_closing():
            self.rest()

    def _refusal(self) -> Shed | None:
        parser = self._parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        if not self.between_requests():
            # Answers leave in the order of their requests.
            return None
        path, _, query = self.url.partition(b"?")
        # The application's own paths are plain: what is not equal to one of them as it comes goes its way.
        scope = cast(Scope, self.scope)
        scope.update(method="POST", path=path.decode("ascii", "replace"), raw_path=path, query_string=query)
        keep_alive = parser.should_keep_alive() and not self.expect_100_continue
        return self.shedding.shed(scope, self.usual_headers(), keep_alive=keep_alive)
