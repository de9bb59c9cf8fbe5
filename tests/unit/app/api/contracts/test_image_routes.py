"""One table names the routes that accept images, for dashboards, recording rules, alerts and the page."""

from __future__ import annotations

import re
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.contracts.adapter import IMAGES
from app.api.inference import IMAGE_ENDPOINTS
from observe import image_routes
from observe.image_routes import IMAGE_ROUTES, SELECTOR


def test_the_table_has_the_routes_of_all_protocols(application: Callable[..., FastAPI]) -> None:
    routes = [route for route in application().router.routes if isinstance(route, APIRoute)]
    tagged = {route.path_format for route in routes if IMAGES in route.tags}

    http = [route for route in IMAGE_ROUTES if not route.startswith("/inference.")]
    assert sorted(tagged | {endpoint.path for endpoint in IMAGE_ENDPOINTS}) == sorted(http)


def test_the_selector_matches_these_routes_alone() -> None:
    pattern = re.compile(SELECTOR.partition('"')[2].rstrip('"'))

    assert all(pattern.fullmatch(route) for route in IMAGE_ROUTES)
    for other in ("/v1/models/{name}", "/v2/models/{path}", "/v2/repository/models/{name}/load", "/readyz", "other"):
        assert not pattern.fullmatch(other)


def test_rules_and_page_have_the_routes_of_the_table() -> None:
    for path, text in image_routes.files():
        assert path.read_text() == text, "run python -m observe.dashboards"
        assert SELECTOR in text or all(f'"{route}"' in text for route in IMAGE_ROUTES)
