"""The dashboard *Service*: traffic, errors, latency, batches, queue and device. Here is the row *Latency*."""

from __future__ import annotations

from typing import get_args

from grafana_foundation_sdk.builders import heatmap
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models.common import StackingMode

from models.interface.telemetry import Stage
from observe.dashboards import device, traffic
from observe.dashboards.panels import MODEL, OF_IMAGES, RATE, PanelBuilder, Query, board, graph, heat

_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))

_MEANING: dict[str, str] = {
    "read": "Reading the request's body: long for slow clients and large files.",
    "decode": "From admission to a tensor of the network's input size, including the wait for a decode thread.",
    "queue": "From the end of decoding to the start of the forward: long if the device is the bottleneck.",
    "forward": "The forward of the batch that the image was in.",
    "respond": "From the last image's result to the end of the response, including the lookup of a search.",
}


def service() -> Dashboard:
    return board(
        "gradless-service",
        "gradless: Service",
        "Traffic, errors, latency by stage, batches, queue and memory of gradless.",
        [
            ("At a glance", traffic.at_a_glance()),
            ("Traffic", traffic.traffic()),
            ("Errors", traffic.errors()),
            ("Latency", _latency()),
            ("Batches", device.batches()),
            ("Queue", device.queue()),
            ("Memory and device", device.memory_and_device()),
        ],
    )


def _latency() -> list[PanelBuilder]:
    buckets = f'sum by (le) (rate(gradless_request_duration_seconds_bucket{{{OF_IMAGES}, code="2xx"}}{RATE}))'
    panels: list[PanelBuilder] = [
        heat(
            "Requests",
            "Duration of successful requests with images. The dots are exemplars: their request ids are in the log.",
            "s",
            buckets,
            with_exemplars=True,
        ),
        graph(
            "Requests: quantiles",
            "The same durations as quantiles, over all routes.",
            "s",
            *(Query(f"histogram_quantile({share}, {buckets})", name) for name, share in _QUANTILES),
        ),
        graph(
            "Share of time by stage",
            "Shares of an image's time. For a large share of queue add replicas, for one of decode cores.",
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
            f"{share:.0%} of images (of requests, for read and respond) spend less time in the stage.",
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
