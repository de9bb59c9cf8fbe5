"""POST /debug/grad-modes: what this model's forward would cost with gradients, beside what it costs as served."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.callers import unless_gone
from app.dependencies import ModelName, TheRuntime, debug_enabled
from app.documents import answers
from app.problems import DebugDisabledError
from app.schemas import GradModes, ModeMeasurement
from models.errors import ComparisonRunningError, UnknownModelError

router = APIRouter(prefix="/debug", tags=["debug"], dependencies=[Depends(debug_enabled)])


@router.post("/grad-modes", responses=answers(DebugDisabledError, UnknownModelError, ComparisonRunningError))
async def grad_modes(
    request: Request,
    runtime: TheRuntime,
    model: ModelName = None,
    batch_size: Annotated[int, Query(ge=1, le=64, description="images in the forward")] = 32,
    iterations: Annotated[int, Query(ge=1, le=50, description="timed forwards a mode")] = 5,
) -> GradModes:
    """Run the served network on one batch under each autograd mode. Ends when its caller leaves."""
    # There is no body to read, but what a caller leaves unread would hide that it has gone.
    await request.body()
    found = await unless_gone(request, runtime.compare(model, batch_size=batch_size, iterations=iterations))
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
