"""One replica: the application that `gradless serve` runs, with models, queues and threads of its own, on Ray's event
loop."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import Parts
from app.api.middleware import PlainStartFailures
from app.main import create_app, start_serving
from app.observability.metrics import merge_expositions
from app.process.logs import configure_logging
from app.settings import Settings
from models.interface.runtime import Runtime
from models.interface.telemetry import Telemetry

_log = logging.getLogger(__name__)

# Below Prometheus's default scrape timeout of 10 s.
_SCRAPE_TIMEOUT_S = 8.0

_REQUEST_ID = "x-request-id"

_FIXED_MODELS = "A request reaches one replica only. To change the models of all replicas, deploy again."


class Replica:
    """The class that Ray Serve instantiates in a process of its own.

    Ray runs the application's lifespan, which loads the models, before it sends requests; before it shuts the lifespan
    down it waits for the running requests.
    """

    def __init__(self, settings: Settings, cores: int) -> None:
        configure_logging(settings.log_level, settings.log_format)
        self._settings = settings
        self._cores = cores
        app = create_app(settings, self._start)
        self._parts: Parts = app.state.parts
        self._parts.fixed_models = _FIXED_MODELS
        self._parts.scraped.build = self._metrics_of_all_replicas
        self._application = ProxyHeaders(PlainStartFailures(app, self._parts))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._application

    def check_health(self) -> None:
        """Raise RuntimeError while /readyz would answer 503.

        Ray replaces a replica after several failures in a row; a model that is restarted may be ready before.
        """
        if not self._parts.ready:
            raise RuntimeError("the models of this replica are not ready")

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return this replica's id and its exposition, compressed. Other replicas call it through Ray.

        Ray passes answers from 100 KiB on through its object store, and there the replica that asks has crashed (Ray
        2.60, "ObjectUnknownOwner"). One model's metrics have that size, and 7 kB when compressed.
        """
        # Imported late, here and below: importing Ray reconfigures logging of the whole process.
        from ray import serve  # noqa: PLC0415

        body, _ = self._parts.metrics.exposition(accept)
        return serve.get_replica_context().replica_tag, zlib.compress(body, level=1)

    def _start(self, telemetry: Telemetry) -> Runtime:
        # A runtime that has given up is not ready: check_health fails, and Ray ends the process.
        return start_serving(self._settings, telemetry, lambda _reason: None, self._cores)

    def _metrics_of_all_replicas(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics of all replicas as (body, content type): a client cannot choose a replica to scrape.

        Replicas that do not answer in time are left out. Blocks; not for the event loop.
        """
        from ray import serve  # noqa: PLC0415

        context = serve.get_replica_context()
        replicas = serve.get_deployment_handle(context.deployment, context.app_name)
        answers: Sequence[tuple[str, bytes] | Exception]
        try:
            answers = replicas.broadcast("metrics", accept).results(timeout_s=_SCRAPE_TIMEOUT_S, return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - any failure of Ray's router, such as one that is still starting
            answers = [error]
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if failures:
            _log.warning("%d replicas did not report their metrics; the first error: %r", len(failures), failures[0])
        others = dict(answer for answer in answers if not isinstance(answer, Exception))
        own_id, own = self.metrics(accept)
        expositions = {replica: zlib.decompress(body).decode() for replica, body in {own_id: own, **others}.items()}
        return merge_expositions(expositions, accept, label="replica")


class ProxyHeaders:
    """ASGI middleware that marks each request as forwarded, which Serve's proxy does not do.

    Without the mark, clients on the proxy's machine, or behind another proxy there, would count as localhost, which may
    use the lens without a key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(_REQUEST_ID)
        forwarded = (b"forwarded", f"for={_node(scope)}".encode("ascii"))

        async def send_without_duplicate(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # The proxy adds the id that it gave the request itself.
                if headers.get(_REQUEST_ID) == request_id:
                    del headers[_REQUEST_ID]
            await send(message)

        await self._app({**scope, "headers": [*scope["headers"], forwarded]}, receive, send_without_duplicate)


def _node(scope: Scope) -> str:
    """Return the client's address according to the proxy, in the syntax of RFC 7239."""
    try:
        address = ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return "unknown"
    return f'"[{address}]"' if address.version == 6 else str(address)  # noqa: PLR2004 - IPv6
