"""Builders of queries, panels, rows and variables, so that both dashboards look alike."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from observe.image_routes import SELECTOR

# Chosen on the dashboard, so that it works in any Grafana with a Prometheus.
DATA_SOURCE = DataSourceRef("prometheus", "${datasource}")

# The data source in docker/grafana/provisioning. Where there is none of this uid, Grafana takes its first Prometheus.
_PROVISIONED = VariableOption(selected=True, text="Prometheus", value="gradless-prometheus")

# Label selectors on the dashboard's variables.
INSTANCE = 'instance=~"$instance"'
MODEL = f'{INSTANCE}, model=~"$model"'
OF_IMAGES = f"{INSTANCE}, {SELECTOR}"
RATE = "[$__rate_interval]"

_ALL = VariableOption(selected=True, text="All", value="$__all")

PanelBuilder = timeseries.Panel | stat.Panel | heatmap.Panel | bargauge.Panel
_P = TypeVar("_P", timeseries.Panel, stat.Panel, heatmap.Panel, bargauge.Panel)


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and the legend of its series, in which {{label}} stands for a label's value."""

    expression: str
    legend: str = ""


def graph(
    title: str, description: str, unit: str, *queries: Query, width: int = 8, stacked: StackingMode = StackingMode.NONE
) -> timeseries.Panel:
    """A time series panel, with lines or stacked areas."""
    panel = (
        _described(timeseries.Panel(), title, description, unit, queries)
        .height(8)
        .span(width)
        .min(0)
        .line_width(1)
        .fill_opacity(10 if stacked is StackingMode.NONE else 60)
        .stacking(common.StackingConfig().mode(stacked))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    return panel.legend(legend.show_legend(True).calcs([]))


def number(
    title: str,
    description: str,
    unit: str,
    expression: str,
    *,
    bad_from: float | None = None,
    good_from: float = 0,
    width: int = 4,
) -> stat.Panel:
    """A stat panel with a sparkline, red from `bad_from` on or below `good_from`."""
    steps = [Threshold(None, "red"), Threshold(good_from, "green")] if good_from else [Threshold(None, "green")]
    if bad_from is not None:
        steps.append(Threshold(bad_from, "red"))
    return (
        _described(stat.Panel(), title, description, unit, [Query(expression)])
        .height(4)
        .span(width)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(_last())
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    )


def heat(title: str, description: str, unit: str, bucket_rate: str, *, with_exemplars: bool = False) -> heatmap.Panel:
    """A heat map of a histogram over time. `bucket_rate` has one series per `le`."""
    panel = _described(heatmap.Panel(), title, description, unit, [])
    query = prometheus.Dataquery().ref_id("A").expr(bucket_rate).legend_format("{{le}}").range()
    return (
        panel.with_target(query.format(PromQueryFormat.HEATMAP).exemplar(with_exemplars).datasource(DATA_SOURCE))
        .height(8)
        .span(8)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
        .cell_gap(1)
        .hide_legend()
    )


def bars(title: str, description: str, unit: str, query: Query) -> bargauge.Panel:
    """A bar gauge with the latest value of each series."""
    return (
        _described(bargauge.Panel(), title, description, unit, [query])
        .height(8)
        .span(8)
        .min(0)
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(_last())
    )


def board(uid: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[PanelBuilder]]]) -> Dashboard:
    """A dashboard with named rows of panels, and variables for data source, instance and model."""
    built = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["gradless"])
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus").current(_PROVISIONED))
        .with_variable(_variable("instance", "Instance", "label_values(gradless_build_info, instance)"))
        .with_variable(_variable("model", "Model", f"label_values(gradless_model_ready{{{INSTANCE}}}, model)"))
    )
    panel_id = 0
    for name, panels in rows:
        panel_id += 1
        built.with_row(Row(name).id(panel_id))
        for panel in panels:
            panel_id += 1
            built.with_panel(panel.id(panel_id))
    return built


def as_json(dashboard: Dashboard) -> str:
    """Return the dashboard as the JSON that Grafana provisions."""
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _described(panel: _P, title: str, description: str, unit: str, queries: Sequence[Query]) -> _P:
    panel.title(title).description(description).unit(unit).datasource(DATA_SOURCE)
    for letter, query in zip(string.ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expression).range().datasource(DATA_SOURCE)
        panel.with_target(target.legend_format(query.legend) if query.legend else target)
    return panel


def _variable(name: str, label: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .datasource(DATA_SOURCE)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(_ALL)
    )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")
