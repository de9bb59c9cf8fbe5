"""One process, several models: the first is the default, a query chooses, and each answers as itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2


def test_each_served_model_answers_by_its_name_and_the_first_by_default(
    start_server: Callable[..., Any], clock_png: bytes
) -> None:
    server = start_server(GRADLESS_MODELS="efficientnet_lite0, timm/resnet18:random")
    with httpx2.Client(base_url=server.address, timeout=30) as http:
        listed = http.get("/v1/models").json()["models"]
        by_default = http.post("/v1/features", content=clock_png).json()
        first = http.post("/v1/features?model=efficientnet_lite0", content=clock_png).json()
        second = http.post("/v1/features?model=timm/resnet18:random", content=clock_png).json()
        unknown = http.post("/v1/features?model=timm/resnet19", content=clock_png)
        described = http.get("/v1/models/timm/resnet18:random").json()

    assert [model["name"] for model in listed] == ["efficientnet_lite0", "timm/resnet18:random"]
    assert by_default == first
    assert (first["model"], first["dimensions"]) == ("efficientnet_lite0", 1280)
    assert (second["model"], second["dimensions"]) == ("timm/resnet18:random", 512)
    assert first["fingerprint"] != second["fingerprint"] == described["fingerprint"]
    assert unknown.status_code == 404
    assert unknown.json()["type"] == "urn:gradless:problem:unknown-model"
    assert "timm/resnet18:random" in unknown.json()["detail"]
