"""One replica: the application with models, queues and threads of its own, as `gradless serve` runs it, on the event
loop that Ray gives it."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence

from starlette.types import ASGIApp

from app.api.dependencies import Parts, admin_allowed
from app.http.problems import ForbiddenError
from app.main import create_app, start_serving
from app.middleware.start_failures import PlainStartFailures
from app.process.logs import configure_logging
from app.ray_serve.behind_serve import BehindServe
from app.ray_serve.exposition import merged
from app.settings import Settings
from models.interface.runtime import Runtime
from models.interface.telemetry import Telemetry

_log = logging.getLogger(__name__)

# A scrape without an answer is over in ten, where Prometheus is left as it is.
_SCRAPE_TIMEOUT_S = 8.0


class Replica:
    """What Ray Serve runs in a process of its own. Ray loads the models, by the application's lifespan, before it sends
    a request; it waits for the requests inside before it closes them."""

    def __init__(self, settings: Settings, cores: int) -> None:
        configure_logging(settings.log_level, settings.log_format)
        self._settings = settings
        self._cores = cores
        self._parts: Parts | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self._settings, self._start)
        app.dependency_overrides[admin_allowed] = _refuse_changes
        self._parts = app.state.parts
        self._parts.scraped.build = self._everybodys_metrics
        return BehindServe(PlainStartFailures(app, self._parts))

    def check_health(self) -> None:
        """What /readyz says. Ray replaces a replica that raises a few times in a row: a model that is being started
        anew may be back by then."""
        runtime = None if self._parts is None else self._parts.runtime
        if runtime is None or not runtime.ready:
            raise RuntimeError("the models of this replica are not ready")

    def metrics(self, accept: str) -> tuple[str, bytes, str]:
        """This replica's id, its metrics, compressed, and their content type. For the others, by Ray.

        From 100 KiB on Ray would pass the answer through its object store, where the replica that asks has been seen to
        crash (Ray 2.60, "ObjectUnknownOwner"). One model's metrics are that large; compressed they are 7 kB.
        """
        if self._parts is None:  # pragma: no cover - nobody is asked before
            raise RuntimeError("this replica has not begun")
        # Here and below, not above: importing Ray changes how a whole process logs, and tests read this too.
        from ray import serve  # noqa: PLC0415

        body, content_type = self._parts.metrics.exposition(accept)
        return serve.get_replica_context().replica_tag, zlib.compress(body, level=1), content_type

    def _start(self, telemetry: Telemetry) -> Runtime:
        # Not ready from then on, which Ray hears of: it is Ray that ends processes here.
        return start_serving(self._settings, telemetry, lambda _reason: None, self._cores)

    def _everybodys_metrics(self, accept: str) -> tuple[bytes, str]:
        """Of all replicas, whichever was asked: Serve's proxy cannot be asked for one of them. Those that do not answer
        in time are missing. Blocks, and is not for the event loop."""
        from ray import serve  # noqa: PLC0415

        context = serve.get_replica_context()
        replicas = serve.get_deployment_handle(context.deployment, context.app_name)
        answers: Sequence[tuple[str, bytes, str] | Exception]
        try:
            answers = replicas.broadcast("metrics", accept).results(timeout_s=_SCRAPE_TIMEOUT_S, return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - a router that is not up yet, under load: whatever it is
            answers = [error]
        silent = [answer for answer in answers if isinstance(answer, Exception)]
        if silent:
            _log.warning("not all replicas have told their metrics; the first of %d errors: %r", len(silent), silent[0])
        told = {answer[0]: answer[1] for answer in answers if not isinstance(answer, Exception)}
        own_id, own, content_type = self.metrics(accept)
        expositions = {name: zlib.decompress(body).decode() for name, body in {own_id: own, **told}.items()}
        return merged(expositions).encode(), content_type


async def _refuse_changes() -> None:
    raise ForbiddenError("A request reaches one replica; the models of all are changed by deploying anew.")
