"""Rows of the dashboard *Service*: overview, traffic and errors."""

from __future__ import annotations

from grafana_foundation_sdk.models.common import StackingMode

from observe.dashboards.panels import INSTANCE, MODEL, OF_IMAGES, RATE, PanelBuilder, Query, graph, number


def at_a_glance() -> list[PanelBuilder]:
    return [
        number(
            "Models ready",
            "Share of the selected models, on all instances, that answer requests. Below 1, some requests get 503.",
            "percentunit",
            f"avg(gradless_model_ready{{{MODEL}}})",
            good_from=1,
        ),
        number(
            "Requests",
            "Requests with images per second, in all protocols, with any status.",
            "reqps",
            f'sum(rate(gradless_requests_total{{{OF_IMAGES}, method=~"POST|PUT"}}{RATE}))',
        ),
        number(
            "Goodput",
            "Images per second that were answered in time.",
            "suffix: images/s",
            f"sum(instance_model:gradless_images_ok:rate5m{{{MODEL}}})",
        ),
        number(
            "Errors",
            "Share of requests with images answered with 5xx; the maximum over the selected instances.",
            "percentunit",
            f"max(instance:gradless_request_errors:ratio_rate5m{{{INSTANCE}}})",
            bad_from=0.05,
        ),
        number(
            "p99",
            "99 % of successful requests with images take less time; the slowest route and instance.",
            "s",
            f"max(instance_route:gradless_request_duration_seconds:p99_rate5m{{{OF_IMAGES}}} >= 0)",
            bad_from=1,
        ),
        number(
            "Capacity in use",
            "Images in flight over the capacity; at 1, the next request gets 429.",
            "percentunit",
            f"max(gradless_in_flight_images{{{MODEL}}} / gradless_queue_capacity_images)",
            bad_from=0.9,
        ),
    ]


def traffic() -> list[PanelBuilder]:
    return [
        graph(
            "Requests by status",
            "Requests per second, each counted once. 499: the client disconnected before the response.",
            "reqps",
            Query(f"sum by (code) (rate(gradless_requests_total{{{INSTANCE}}}{RATE}))", "{{code}}"),
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "Requests by route",
            "Requests per second by route; other: no route of the API.",
            "reqps",
            Query(f"sum by (route) (rate(gradless_requests_total{{{INSTANCE}}}{RATE}))", "{{route}}"),
        ),
        graph(
            "Requests by protocol",
            "Requests per second by the protocol of their route; native: gradless's own.",
            "reqps",
            Query(f"sum by (contract) (rate(gradless_requests_total{{{INSTANCE}}}{RATE}))", "{{contract}}"),
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "Images by outcome",
            "Images per second, each counted once: those received completely, and those refused at the request's "
            "headers. Bodies that were too large or truncated count no images.",
            "suffix: images/s",
            Query(f"sum by (outcome) (rate(gradless_images_total{{{MODEL}}}{RATE}))", "{{outcome}}"),
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "Goodput",
            "Images per second that were answered, and all that were counted. A gap means failures or refusals.",
            "suffix: images/s",
            Query(f"sum(instance_model:gradless_images_ok:rate5m{{{MODEL}}})", "answered"),
            Query(f"sum(instance_model:gradless_images:rate5m{{{MODEL}}})", "counted"),
        ),
        graph(
            "Success rate of images",
            "Without bad and cancelled images, which are not the server's fault.",
            "percentunit",
            Query(f"instance_model:gradless_images_ok:ratio_rate5m{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        graph(
            "Images by task",
            "Classification, feature and search requests share queue, batches and forwards.",
            "suffix: images/s",
            Query(f"sum by (task) (rate(gradless_images_total{{{MODEL}}}{RATE}))", "{{task}}"),
        ),
    ]


def errors() -> list[PanelBuilder]:
    return [
        graph(
            "Failing requests",
            "Share of requests with images answered with 5xx. Above 5 % there is an alert.",
            "percentunit",
            Query(f"instance:gradless_request_errors:ratio_rate5m{{{INSTANCE}}}", "{{instance}}"),
        ),
        graph(
            "Rejections by reason",
            "Refusals per second, of requests and of single images. queue_full and deadline: overload.",
            "suffix: /s",
            Query(f"sum by (reason) (rate(gradless_rejected_total{{{INSTANCE}}}{RATE}))", "{{reason}}"),
        ),
        graph(
            "Refused and bad images",
            "Shares of all images: refused or late, which more replicas avoid, and undecodable, the clients' fault.",
            "percentunit",
            Query(f"max(instance_model:gradless_images_rejected:ratio_rate5m{{{MODEL}}})", "refused or late"),
            Query(f"max(instance_model:gradless_images_bad:ratio_rate5m{{{MODEL}}})", "bad"),
        ),
        graph(
            "Cancelled images by stage",
            "The client disconnected or the deadline passed. In decode or queue a cancelled image costs no forward.",
            "suffix: images/s",
            Query(f"sum by (stage) (rate(gradless_cancelled_total{{{MODEL}}}{RATE}))", "{{stage}}"),
        ),
        graph(
            "Device time saved",
            "Forward time saved by images that were cancelled before their forward began, by model.",
            "percentunit",
            Query(f"sum by (model) (rate(gradless_saved_device_seconds_total{{{MODEL}}}{RATE}))", "{{model}}"),
        ),
        graph(
            "Failed images",
            "The forward of their batch failed and the clients got 500; the log has the reason.",
            "suffix: images/s",
            Query(f'sum by (model) (rate(gradless_images_total{{{MODEL}, outcome="failed"}}{RATE}))', "{{model}}"),
        ),
        graph(
            "Restarts and lack of memory",
            "In the last ten minutes: forwards that ran out of memory, batches split for it, models restarted.",
            "short",
            Query(
                f"sum by (model) (increase(gradless_out_of_memory_total{{{MODEL}}}[10m]))", "{{model}} out of memory"
            ),
            Query(f"sum by (model) (increase(gradless_batch_splits_total{{{MODEL}}}[10m]))", "{{model}} split"),
            Query(
                f"sum by (model) (increase(gradless_model_replacements_total{{{MODEL}}}[10m]))", "{{model}} restarted"
            ),
        ),
    ]
