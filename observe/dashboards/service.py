"""The dashboard *Service*: traffic, errors, latency, batches, queue and device."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from observe.dashboards import device, latency, traffic
from observe.dashboards.panels import board


def service() -> Dashboard:
    return board(
        "gradless-service",
        "gradless: Service",
        "Traffic, errors, latency by stage, batches, queue and memory of gradless.",
        [
            ("At a glance", traffic.at_a_glance()),
            ("Traffic", traffic.traffic()),
            ("Errors", traffic.errors()),
            ("Latency", latency.latency()),
            ("Batches", device.batches()),
            ("Queue", device.queue()),
            ("Memory and device", device.memory_and_device()),
        ],
    )
