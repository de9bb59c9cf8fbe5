"""POST /debug/grad-modes: what this model's forward would cost with gradients, beside what it costs as served."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.callers import unless_gone
from app.dependencies import ModelName, TheRuntime, card_named, debug_enabled, parts_of
from app.documents import answers
from app.problems import BodyTooLargeError, DebugDisabledError, SlowBodyError
from app.schemas import GradModes, ModeMeasurement
from app.uploads import skip_body
from models.errors import ComparisonRunningError, UnknownModelError

_ERRORS = (DebugDisabledError, UnknownModelError, SlowBodyError, ComparisonRunningError, BodyTooLargeError)

router = APIRouter(prefix="/debug", tags=["debug"], dependencies=[Depends(debug_enabled)])


@router.post("/grad-modes", responses=answers(*_ERRORS))
async def grad_modes(
    request: Request,
    runtime: TheRuntime,
    model: ModelName = None,
    batch_size: Annotated[int, Query(ge=1, le=64, description="images in the forward")] = 32,
    iterations: Annotated[int, Query(ge=1, le=50, description="timed forwards a mode")] = 5,
) -> GradModes:
    """Run the served network on one batch under each autograd mode. Ends when its caller leaves."""
    name = card_named(runtime, model).name
    await skip_body(request, timeout_s=parts_of(request).settings.read_timeout_s)
    found = await unless_gone(request, runtime.compare(name, batch_size=batch_size, iterations=iterations))
    return GradModes(
        model=found.model,
        fingerprint=found.fingerprint,
        device=found.device,
        batch_size=found.batch_size,
        iterations=found.iterations,
        modes=[
            ModeMeasurement(
                mode=report.mode,
                median_seconds=report.median_seconds,
                retained_bytes=report.retained.bytes,
                retained_tensors=report.retained.tensors,
                output_requires_grad=report.output_requires_grad,
                max_abs_difference=report.max_abs_difference,
            )
            for report in found.modes
        ],
    )
