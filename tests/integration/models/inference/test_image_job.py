"""A job holds its image no longer than it is needed."""

from __future__ import annotations

import asyncio

import pytest

from models.inference.image_job import ImageJob
from models.interface.errors import DecodersBusyError
from models.interface.request import CancelToken, InferenceRequest

pytestmark = pytest.mark.anyio

_FILE = b"an image file"


def _job(token: CancelToken) -> ImageJob:
    return ImageJob(_FILE, InferenceRequest("classify", cancel_token=token), asyncio.get_running_loop())


async def test_a_file_is_held_again_while_it_waits_for_a_process() -> None:
    job = _job(CancelToken())
    assert job.take_image() == _FILE
    assert job.take_image() == b""
    job.put_back(_FILE)
    assert job.take_image() == _FILE


@pytest.mark.parametrize("put_back_first", [True, False])
async def test_a_job_that_is_cancelled_drops_its_file_before_or_after_it_is_put_back(put_back_first: bool) -> None:  # noqa: FBT001 - a parameter
    token = CancelToken()
    job = _job(token)
    job.take_image()
    if put_back_first:
        job.put_back(_FILE)
    token.cancel()
    job.cancel()
    if not put_back_first:
        job.put_back(_FILE)
    assert job.take_image() == b""


async def test_a_job_that_failed_holds_no_file() -> None:
    """Its error may refer to it, by way of the frames of the traceback."""
    job = _job(CancelToken())
    job.put_back(_FILE)
    job.fail(DecodersBusyError(1.0))
    assert job.take_image() == b""
    await job.done
