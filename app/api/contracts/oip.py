"""The Open Inference Protocol, version 2, over REST, with Triton's extensions: what clients of Triton and of KServe
speak.

Every name of a model may be that of a view (app/api/contracts/views.py). Names may have slashes, so their paths are
split by the served names. Requests of Triton's clients on SageMaker are told from others by their Content-Type.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.api.contracts.adapter import (
    IMAGES,
    ContractRoute,
    UnknownPath,
    contract_router,
    predict,
    query_value,
    upload_for,
)
from app.api.contracts.oip_infer import infer_response, is_of_sagemaker, read_infer_request
from app.api.contracts.oip_models import (
    EXTENSIONS,
    OIP,
    check_load_parameters,
    load_by_name,
    model_configuration,
    model_metadata,
    model_statistics,
    repository_index,
    unload_by_name,
)
from app.api.contracts.output_tensors import inference_request, output_tensors
from app.api.contracts.views import View, split_path, view_named
from app.api.dependencies import (
    Upload,
    admin_allowed,
    check_ready,
    inference_allowed,
    parts_of,
    runtime_of,
    settings_of,
)
from app.api.error_responses import request_problem
from app.api.uploads import read_json
from app.http.problems import METHOD_NOT_ALLOWED, NOT_FOUND, NotOfferedError
from models.interface.errors import DrainingError, ModelDownError

router = contract_router(OIP)


async def _infer(request: Request, name: str) -> Response:
    view_name, version, rest = _split(request, name)
    upload, view = await upload_for(request, view_name, version)
    if rest:
        raise HTTPException(NOT_FOUND.status)
    return await _answer(request, upload, view)


async def _invoke(request: Request) -> Response:
    return await _answer(request, *await upload_for(request, query_value(request, "model")))


class _SageMakerRoute(ContractRoute):
    """The route of Triton's clients on SageMaker. Other requests with that path are the `predict` adapter's."""

    contract = OIP

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if is_of_sagemaker(Headers(scope=scope)) else (Match.NONE, {})


async def _answer(request: Request, upload: Upload, view: View) -> Response:
    """Answer all images of a request, or none."""
    sent = await read_infer_request(request, view)
    answer, predictions = await predict(upload, sent.images, inference_request(sent.outputs))
    return await infer_response(request, view, sent, answer, output_tensors(sent.outputs, predictions))


async def _describe_server(request: Request) -> object:
    await inference_allowed(request)
    return {"name": "gradless", "version": request.app.version, "extensions": EXTENSIONS}


async def _live(request: Request) -> object:
    del request
    return {"live": True}


async def _ready(request: Request) -> object:
    check_ready(request)
    return {"ready": True}


async def _describe(request: Request, path: str) -> object:
    """Answer GET /v2/models/NAME[/versions/VERSION][/config, /ready or /stats]."""
    await inference_allowed(request)
    runtime = runtime_of(request)
    name, version, rest = _split(request, path)
    view = view_named(runtime, name, version)
    match rest:
        case "":
            return model_metadata(view)
        case "config":
            return model_configuration(view, settings_of(request).max_images_per_request)
        case "ready":
            if view.model.name in runtime.down:
                raise ModelDownError(view.model.name)
            if runtime.draining:
                raise DrainingError
            return {"name": view.name, "ready": True}
        case "stats":
            return await _statistics(request, view)
        case "infer":
            return request_problem(request, METHOD_NOT_ALLOWED, "GET of infer; use POST", {"Allow": "POST"})
    raise HTTPException(NOT_FOUND.status)


async def _describe_all(request: Request) -> object:
    await inference_allowed(request)
    return await _statistics(request, None)


async def _statistics(request: Request, view: View | None) -> object:
    """Return the statistics of a view's model under the view's name, or of all models."""
    samples = await parts_of(request).scraped.samples_of_models()
    if view is None:
        found = model_statistics(runtime_of(request).cards.values(), samples)
    else:
        found = [{**each, "name": view.name} for each in model_statistics([view.model], samples)]
    return {"model_stats": found}


class _IndexRequest(BaseModel):
    ready: bool = False


async def _index(request: Request) -> object:
    await inference_allowed(request)
    stated = await read_json(request, _IndexRequest)
    return repository_index(runtime_of(request), ready_only=stated is not None and stated.ready)


class _LoadRequest(BaseModel):
    parameters: dict[str, Any] = {}


async def _load(request: Request, name: str) -> Response:
    await admin_allowed(request)
    stated = await read_json(request, _LoadRequest)
    check_load_parameters(() if stated is None else stated.parameters)
    await load_by_name(runtime_of(request), settings_of(request).models, name)
    return Response()


async def _unload(request: Request, name: str) -> Response:
    await admin_allowed(request)
    await unload_by_name(runtime_of(request), name)
    return Response()


async def _not_offered(request: Request, rest: str = "") -> Response:
    del rest
    await inference_allowed(request)
    raise NotOfferedError("shared memory, trace settings or log settings")


def _split(request: Request, path: str) -> tuple[str, str | None, str]:
    """Return the name of a view, the version and the rest of `path`: NAME[/versions/VERSION][/REST]."""
    name, rest = split_path(runtime_of(request).cards, path)
    version = None
    if rest.startswith("versions/"):
        version, _, rest = rest.removeprefix("versions/").partition("/")
    return name, version, rest


for _path in ("/v2", "/v2/"):
    router.add_api_route(_path, _describe_server)
router.add_api_route("/v2/health/live", _live)
router.add_api_route("/v2/health/ready", _ready)
router.add_api_route("/v2/models/{name:path}/infer", _infer, methods=["POST"], tags=[IMAGES])
router.add_api_route("/invocations", _invoke, methods=["POST"], tags=[IMAGES], route_class_override=_SageMakerRoute)
router.add_api_route("/v2/models/stats", _describe_all)
for _path in (
    "/v2/models/{rest:path}/trace/setting",
    "/v2/trace/{rest:path}",
    "/v2/logging",
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
):
    router.add_api_route(_path, _not_offered, methods=["GET", "POST"])
router.add_api_route("/v2/models/{path:path}", _describe)
router.add_api_route("/v2/repository/index", _index, methods=["POST"])
router.add_api_route("/v2/repository/models/{name:path}/load", _load, methods=["POST"])
router.add_api_route("/v2/repository/models/{name:path}/unload", _unload, methods=["POST"])
router.routes.append(UnknownPath(OIP, "/v2/"))
