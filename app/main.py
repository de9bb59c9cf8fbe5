"""create_app(): the only place where the parts of the application are wired.

`uvicorn --factory app.main:create_app` serves it too.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app.api.contracts import huggingface, oip, openai, predict
from app.api.dependencies import Parts
from app.api.error_responses import handle_errors
from app.api.inference import IMAGE_ENDPOINTS
from app.api.load_shedding import LoadShedding
from app.api.middleware import HeadAsGet, HostCheck
from app.api.openapi import documented_statuses, extend_openapi, undocumented_statuses
from app.api.routers import images, lens, operation, pages, search
from app.http.contract import TENSORS_AT
from app.http.hosts import AllowedHosts, allowed_hosts, trusted_hosts
from app.observability.metrics import Metrics, SharedExposition
from app.observability.request_log import RequestLog
from app.observability.request_observer import RequestObserver, RequestObserverMiddleware
from app.process.lifetime import freeze_loaded_objects, start_error
from app.settings import Settings, load_settings
from models.interface.admission import Budget
from models.interface.errors import BodyMemoryFullError, StartError
from models.interface.model_sources import expand_home
from models.interface.runtime import Runtime, StartRuntime
from models.interface.telemetry import Telemetry
from models.search.index import SearchIndex

if TYPE_CHECKING:
    from app.api.contracts.grpc_server import GrpcServer
    from app.observability.tracing import Traces
    from models.serving.model_instance import ServingOptions

_DESCRIPTION = """Image classification and feature vectors: batched forwards in eval mode under torch.inference_mode.
Errors are RFC 9457 problem details with a stable `type`. In addition to the documented responses, an unknown path
returns 404 (`urn:gradless:problem:not-found`), and a method that a path does not support returns 405
(`urn:gradless:problem:method-not-allowed`). HEAD is supported wherever GET is."""


def create_app(
    settings: Settings | None = None, start_runtime: StartRuntime | None = None, traces: Traces | None = None
) -> FastAPI:
    """Return an application that loads its models when it starts.

    `start_runtime` replaces models.serving.runtime; `traces` replaces the traces that the settings enable.

    Raises SettingsError. The application's lifespan raises StartError.
    """
    settings = settings or load_settings()
    metrics = Metrics()
    request_log = RequestLog(settings.slow_request_ms / 1e3)
    parts = Parts(
        settings,
        metrics,
        settings.known_keys(),
        AllowedHosts(trusted_hosts(settings.allowed_hosts)),
        SharedExposition(metrics.exposition, settings.metrics_max_age_s),
    )
    if traces is None and settings.traces:
        # Imported here because OpenTelemetry is an optional dependency.
        from app.observability.tracing import exporting_traces  # noqa: PLC0415

        traces = exporting_traces(version("gradless"))

    def shut_down(reason: str) -> None:
        parts.failure = reason
        # Accepted requests are still answered, as after any SIGTERM.
        os.kill(os.getpid(), signal.SIGTERM)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            # First, so that a wrong address is reported at once. The engine process has checked that of HTTP workers.
            grpc_server = None if settings.http_workers else _grpc_server(app, observer)
            runtime = start_runtime(metrics) if start_runtime else start_serving(settings, metrics, shut_down)
            parts.search_index = open_search_index(runtime, settings)
            parts.runtime = runtime
            # Connections to the port of HTTP workers arrive from here on.
            grpc_server = grpc_server or _grpc_server(app, observer)
        except (StartError, OSError) as error:
            parts.start_error = start_error(error)
            raise
        metrics.watch(runtime)
        freeze_loaded_objects()
        try:
            if grpc_server is not None:
                await grpc_server.start()
            yield
        finally:
            await _close(parts, runtime, grpc_server)
            request_log.close()
            if traces is not None:
                await asyncio.to_thread(traces.close)
            gc.unfreeze()

    app = FastAPI(
        title="gradless",
        version=version("gradless"),
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        # app/api/routers/pages.py serves /docs.
        docs_url=None,
        redoc_url=None,
        # A redirect would take its host from the Host header, and its scheme is unknown behind a proxy.
        redirect_slashes=False,
        # app/observability records each request once; FastAPI would record it again if OpenTelemetry is set up.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.parts = parts
    # Matched before the rest: POST /v1/models/{name} would take the paths of protocols for names.
    contracts = (oip.router, *predict.routers, openai.router, huggingface.router)
    rest = (operation.models, operation.probes, lens.router, pages.router)
    # Not by include_router, which matches each request twice.
    app.router.routes.extend(
        chain.from_iterable(router.routes for router in (images.router, *contracts, search.router, *rest))
    )
    # Middleware added last runs first.
    app.add_middleware(HeadAsGet)
    if settings.cors_origins:
        _allow_origins(app, settings.cors_origins)
    hosts = AllowedHosts(allowed_hosts(settings.allowed_hosts, settings.host))
    app.add_middleware(HostCheck, hosts=hosts)
    observer = RequestObserver(
        metrics,
        request_log,
        Budget(settings.max_held_bytes, lambda _used: BodyMemoryFullError(settings.max_held_bytes)),
        frozenset(endpoint.path for endpoint in IMAGE_ENDPOINTS),
        traces,
    )
    app.add_middleware(RequestObserverMiddleware, observer=observer)
    # Runs before all middleware: app/server/server.py calls it at the headers of a request.
    app.state.shedding = LoadShedding(parts, observer, hosts, app.routes)
    handle_errors(app)
    for path, method, status in chain(documented_statuses(app.routes), undocumented_statuses()):
        metrics.expect(path, method, status)
    extend_openapi(app, keys=bool(parts.keys))
    return app


def _allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "If-Match", "X-API-Key", "X-Request-ID", TENSORS_AT],
        expose_headers=["X-Request-ID", "Server-Timing", "Retry-After", *images.RESULT_HEADERS, TENSORS_AT],
    )


async def _close(parts: Parts, runtime: Runtime, grpc_server: GrpcServer | None) -> None:
    """Answer what gRPC has accepted, then end the runtime, both within the time to drain."""
    if grpc_server is not None:
        await grpc_server.stop(parts.left_to_close_s())
    # In a thread: a forward may still be running, and the event loop still sends answers.
    if not await asyncio.to_thread(runtime.close, parts.left_to_close_s()):
        parts.failure = parts.failure or "a forward or a load was still running when the time to drain was over"


def _grpc_server(app: FastAPI, observer: RequestObserver) -> GrpcServer | None:
    """Return the server of gRPC if the settings ask for one, its port bound. Raises StartError if that is not free."""
    if app.state.parts.settings.grpc_port is None:
        return None
    # gRPC would also write failures to stderr by itself.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported here because it is an optional dependency.
    from app.api.contracts.grpc_server import GrpcServer  # noqa: PLC0415

    return GrpcServer(app, observer)


def open_search_index(runtime: Runtime, settings: Settings) -> SearchIndex | None:
    """Open the index that the settings name, if any. Closes `runtime` and raises StartError if it is damaged, or if no
    served model made its vectors. PyTorch must be loaded before the libraries of the index."""
    if settings.search_index is None:
        return None
    try:
        index = SearchIndex.open(expand_home(settings.search_index))
        index.check_model({name: card.fingerprint for name, card in runtime.cards.items()})
    except StartError:
        # Its threads would keep the process from ending.
        runtime.close(settings.drain_timeout_s)
        raise
    return index


def start_serving(
    settings: Settings,
    telemetry: Telemetry,
    shut_down: Callable[[str], None] = lambda _reason: None,
    cores: int | None = None,
) -> Runtime:
    """Load and warm up the configured models. `shut_down` and `cores` are those of LocalRuntime. Raises StartError."""
    # Imported here so that the HTTP side can be imported and tested without torch.
    from models.serving.runtime import LocalRuntime  # noqa: PLC0415

    return LocalRuntime(replace(serving_options(settings), cores=cores), telemetry, shut_down)


def serving_options(settings: Settings) -> ServingOptions:
    """Return the settings of the inference side."""
    from models.serving.model_instance import ServingOptions  # noqa: PLC0415 - as above

    return ServingOptions(
        models=settings.models,
        models_folder=settings.models_folder,
        max_models=settings.max_models,
        device=settings.device,
        precision=settings.precision,
        backend=settings.backend,
        cache_folder=settings.cache_folder,
        calibration_folder=settings.calibration_folder,
        max_batch_size=settings.max_batch_size,
        fixed_batch=settings.fixed_batch,
        exact_jpeg=settings.exact_jpeg,
        max_batch_delay_s=settings.max_batch_delay_ms / 1e3,
        queue_capacity=settings.queue_capacity,
        decode_threads=settings.decode_threads,
        limits=settings.image_limits,
        deadline_s=settings.deadline_s,
        load_timeout_s=settings.load_timeout_s,
        forward_timeout_s=settings.forward_timeout_s,
    )
