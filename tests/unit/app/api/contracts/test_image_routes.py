"""One table names the routes that accept images, for dashboards, recording rules, alerts and the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.contracts.contract_route import IMAGES
from app.api.inference import IMAGE_ENDPOINTS
from observe.image_routes import IMAGE_ROUTES, SELECTOR

_ROOT = Path(__file__).parents[5]


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


@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_rules_use_the_selector(file: str) -> None:
    rules = (_ROOT / "docker/prometheus/rules" / file).read_text()

    assert set(re.findall(r'route=~"[^"]*"', rules)) == {SELECTOR}


def test_the_page_counts_the_same_routes() -> None:
    script = (_ROOT / "app/page/live.js").read_text()
    listed = re.search(r"IMAGE_ROUTES = new Set\(\[(.*?)\]\)", script, re.DOTALL)

    assert listed
    assert tuple(re.findall(r'"(.*?)"', listed[1])) == IMAGE_ROUTES
