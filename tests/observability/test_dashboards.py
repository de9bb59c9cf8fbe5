"""docker/grafana: the generated dashboards are complete, and their data source can be chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from observe import DASHBOARDS, GRAFANA
from observe.dashboards import FILES

BOARDS: dict[str, dict[str, Any]] = {path.name: json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]

# Metrics of the process or the device; all others have a model label.
WITHOUT_MODEL = ("gradless_requests", "gradless_request_", "gradless_rejected", "gradless_device", "process_")


def test_the_committed_files_are_what_the_code_generates() -> None:
    committed = {path.name: path.read_text() for path in DASHBOARDS.iterdir()}
    assert committed == FILES, "run python -m observe.dashboards"


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_has_a_description_a_unit_and_a_query(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert panel["gridPos"]["w"] <= 24


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_selects_by_instance_and_by_model_if_the_metric_has_one(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert 'instance=~"$instance"' in target["expr"]
        whole_process = any(name in target["expr"] for name in WITHOUT_MODEL)
        assert whole_process or 'model=~"$model"' in target["expr"]


@pytest.mark.parametrize("panel", PANELS)
def test_exemplars_are_queried_where_they_exist(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        is_heat_map = panel["type"] == "heatmap"
        has_some = is_heat_map and "gradless_request_duration_seconds_bucket" in target["expr"]
        assert target.get("exemplar", False) is has_some


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_do_not_overlap(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    covered = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(covered)) == len(covered)
    assert {x for x, _ in covered} == set(range(24))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_dashboards_have_variables_for_data_source_instance_and_model(board: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "model"]
    assert all(variables[name]["multi"] and variables[name]["includeAll"] for name in ("instance", "model"))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_panel_and_variable_queries_the_chosen_data_source(board: dict[str, Any]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    asking = [variable for variable in board["templating"]["list"] if variable["type"] == "query"]
    asked = [*panels, *asking, *(target for panel in panels for target in panel["targets"])]
    assert len(asked) > 2 * len(panels)
    assert all(each["datasource"] == chosen for each in asked)
    assert all(source == chosen for source in sources(board))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_the_provisioned_data_source_is_the_first_choice(board: dict[str, Any]) -> None:
    [provisioned] = loaded(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    choice = board["templating"]["list"][0]
    assert (choice["type"], choice["query"]) == ("datasource", provisioned["type"])
    assert (choice["current"]["text"], choice["current"]["value"]) == (provisioned["name"], provisioned["uid"])


def test_grafana_knows_the_scrape_interval_of_prometheus() -> None:
    [provisioned] = loaded(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    scraping = loaded(GRAFANA.parent / "prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert provisioned["jsonData"]["timeInterval"] == scraping


def test_the_dashboards_are_provisioned_from_a_folder() -> None:
    [provider] = loaded(GRAFANA / "provisioning/dashboards/gradless.yml")["providers"]
    assert provider["type"] == "file"
    assert provider["options"] == {"path": "/var/lib/grafana/dashboards"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS) == 2


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def sources(part: Any) -> list[Any]:
    """Return all data sources in a part of a dashboard."""
    if isinstance(part, list):
        return [source for element in part for source in sources(element)]
    if not isinstance(part, dict):
        return []
    own = [part["datasource"]] if part.get("datasource") else []
    return own + [source for element in part.values() for source in sources(element)]
