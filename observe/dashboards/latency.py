"""Of the dashboard *Service*: where the time goes, as heat maps and quantiles."""

from __future__ import annotations

from typing import get_args

from grafana_foundation_sdk.builders import heatmap
from grafana_foundation_sdk.models.common import StackingMode

from models.interface.telemetry import Stage
from observe.dashboards.panels import MODEL, OF_IMAGES, RATE, PanelBuilder, Query, graph, heat

_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))

_MEANING: dict[str, str] = {
    "read": "Reading the request's body: long for slow callers and large files.",
    "decode": "From admitted to a tensor of the network's size, with the wait for a decode thread: more cores help.",
    "queue": "From decoded to the start of its forward: long where the device is the limit.",
    "forward": "The forward of the batch that an image was in.",
    "respond": "From the last image's result to the answer sent, a search's lookup included.",
}


def latency() -> list[PanelBuilder]:
    buckets = f'sum by (le) (rate(gradless_request_duration_seconds_bucket{{{OF_IMAGES}, code="2xx"}}{RATE}))'
    panels: list[PanelBuilder] = [
        heat(
            "Requests",
            "How long requests with images that succeed take. The dots are single requests: their ids lead to the log.",
            "s",
            buckets,
            with_exemplars=True,
        ),
        graph(
            "Requests: quantiles",
            "The same as quantiles, of all routes together.",
            "s",
            *(Query(f"histogram_quantile({share}, {buckets})", name) for name, share in _QUANTILES),
        ),
        graph(
            "Share of time by stage",
            "Where an image's time goes. A large share of queue asks for replicas, one of decode for cores.",
            "percentunit",
            Query(
                f"avg by (stage) (instance_model_stage:gradless_stage_duration_seconds:share_rate5m{{{MODEL}}} >= 0)",
                "{{stage}}",
            ),
            stacked=StackingMode.PERCENT,
        ),
    ]
    panels += [_stage_heat(stage) for stage in ("read", *get_args(Stage), "respond")]
    panels += [
        graph(
            f"Stages: {name}",
            f"{share:.0%} of images (of requests, for read and respond) spend less in the stage.",
            "s",
            Query(
                f"max by (stage) (instance_model_stage:gradless_stage_duration_seconds:{name}_rate5m{{{MODEL}}} >= 0)",
                "{{stage}}",
            ),
        )
        for name, share in _QUANTILES
    ]
    return panels


def _stage_heat(stage: str) -> heatmap.Panel:
    return heat(
        f"Stage: {stage}",
        _MEANING[stage],
        "s",
        f'sum by (le) (rate(gradless_stage_duration_seconds_bucket{{{MODEL}, stage="{stage}"}}{RATE}))',
    )
