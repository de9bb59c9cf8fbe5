"""The images of an input of the Open Inference Protocol, over REST and gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import Request

from app.api.contracts.tensors import Tensor, images_of_tensor, is_text
from app.api.contracts.views import View
from app.api.dependencies import settings_of
from app.api.json_images import images_of
from app.api.off_loop import off_loop
from app.observability.request_record import record_of
from models.interface.errors import ImageTooLargeError
from models.interface.request import Image, ReadyPixels


async def images_of_input(request: Request, view: View, tensor: Tensor) -> Sequence[Image | ImageTooLargeError]:
    """Return the images in `tensor`, in order. Raises what images_of_tensor and images_of raise."""
    limit = settings_of(request).max_images_per_request
    found = images_of_tensor(tensor, view.model.input_size, normalized=view.input != "pixels", limit=limit)
    pixels = [image for image in found if isinstance(image, ReadyPixels)]
    return pixels or await files_of(request, [file for file in found if isinstance(file, memoryview)])


async def files_of(request: Request, elements: Sequence[memoryview]) -> list[bytes | ImageTooLargeError]:
    """Return the file in each element. One that is base64 or a data URI is decoded. Raises what images_of raises."""
    size_bytes, limit_bytes = sum(map(len, elements)), settings_of(request).max_image_bytes
    record_of(request.scope).reserve_held_bytes(size_bytes)
    # Bytes that are not ASCII remain faults of their base64.
    texts = await off_loop(size_bytes, lambda: [str(each, "latin-1") for each in elements if is_text(each)])
    decoded: Iterator[bytes | ImageTooLargeError] = iter(())
    if texts:
        decoded = iter(await images_of(request, texts))
    return await off_loop(
        size_bytes,
        lambda: [
            next(decoded)
            if is_text(element)
            else ImageTooLargeError(limit_bytes)
            if len(element) > limit_bytes
            else bytes(element)
            for element in elements
        ],
    )
