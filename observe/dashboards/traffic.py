"""Of the dashboard *Service*: what comes in, and what becomes of it."""

from __future__ import annotations

from grafana_foundation_sdk.models.common import StackingMode

from observe.dashboards.panels import INSTANCE, MODEL, OF_IMAGES, RATE, V1, PanelBuilder, Query, graph, number


def at_a_glance() -> list[PanelBuilder]:
    return [
        number(
            "Models ready",
            "Share of the chosen models, on all instances, that answer requests. Below 1, somebody gets 503.",
            "percentunit",
            f"avg(gradless_model_ready{{{MODEL}}})",
            good_from=1,
        ),
        number(
            "Requests",
            "Requests a second to /v1, whatever their outcome.",
            "reqps",
            f"sum(rate(gradless_requests_total{{{V1}}}{RATE}))",
        ),
        number(
            "Goodput",
            "Images a second that were answered, in time.",
            "suffix: images/s",
            f"sum(instance_model:gradless_images_ok:rate5m{{{MODEL}}})",
        ),
        number(
            "Errors",
            "Share of requests to /v1 answered with 5xx; the highest of the chosen instances.",
            "percentunit",
            f"max(instance:gradless_request_errors:ratio_rate5m{{{INSTANCE}}})",
            bad_from=0.05,
        ),
        number(
            "p99",
            "99 of 100 requests with images that succeed take less; of the slowest route and instance.",
            "s",
            f"max(instance_route:gradless_request_duration_seconds:p99_rate5m{{{OF_IMAGES}}} >= 0)",
            bad_from=1,
        ),
        number(
            "Places taken",
            "Images in the building over those that are admitted at once; at 1, the next gets 429.",
            "percentunit",
            f"max(gradless_in_flight_images{{{MODEL}}} / gradless_queue_capacity_images)",
            bad_from=0.9,
        ),
    ]


def traffic() -> list[PanelBuilder]:
    return [
        graph(
            "Requests by status",
            "Requests a second, each counted once. 499 is a caller who left before the answer.",
            "reqps",
            Query(f"sum by (code) (rate(gradless_requests_total{{{INSTANCE}}}{RATE}))", "{{code}}"),
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "Requests by route",
            "Requests a second to each route; other is what is no route of the API.",
            "reqps",
            Query(f"sum by (route) (rate(gradless_requests_total{{{INSTANCE}}}{RATE}))", "{{route}}"),
        ),
        graph(
            "Images by outcome",
            "Images a second, each counted once by what became of it: those read whole, and those refused at their "
            "request's headers. Of a body that was too large or broken off there are none.",
            "suffix: images/s",
            Query(f"sum by (outcome) (rate(gradless_images_total{{{MODEL}}}{RATE}))", "{{outcome}}"),
            stacked=StackingMode.NORMAL,
        ),
        graph(
            "Goodput",
            "Images a second that were answered, beside all that were counted. Where both part, something is lost.",
            "suffix: images/s",
            Query(f"sum(instance_model:gradless_images_ok:rate5m{{{MODEL}}})", "answered"),
            Query(f"sum(instance_model:gradless_images:rate5m{{{MODEL}}})", "counted"),
        ),
        graph(
            "Images answered of those that could be",
            "Leaves out bad images and callers who left, which are not the service's doing.",
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
            "Share of requests to /v1 answered with 5xx. Over 5 % is an alert.",
            "percentunit",
            Query(f"instance:gradless_request_errors:ratio_rate5m{{{INSTANCE}}}", "{{instance}}"),
        ),
        graph(
            "Rejections by reason",
            "Refusals a second, of requests and of single images. queue_full and deadline: too much load.",
            "suffix: /s",
            Query(f"sum by (reason) (rate(gradless_rejected_total{{{INSTANCE}}}{RATE}))", "{{reason}}"),
        ),
        graph(
            "Images turned away and bad images",
            "Shares of all images: refused or late, for want of replicas, and unreadable, which is the callers' doing.",
            "percentunit",
            Query(f"max(instance_model:gradless_images_rejected:ratio_rate5m{{{MODEL}}})", "turned away"),
            Query(f"max(instance_model:gradless_images_bad:ratio_rate5m{{{MODEL}}})", "bad"),
        ),
        graph(
            "Images given up by stage",
            "Their caller left or their deadline passed. Given up in decode or queue they cost no forward.",
            "suffix: images/s",
            Query(f"sum by (stage) (rate(gradless_cancelled_total{{{MODEL}}}{RATE}))", "{{stage}}"),
        ),
        graph(
            "Device time saved",
            "What forwards would have taken for images that were given up before theirs began, by model.",
            "percentunit",
            Query(f"sum by (model) (rate(gradless_saved_device_seconds_total{{{MODEL}}}{RATE}))", "{{model}}"),
        ),
        graph(
            "Images that failed",
            "Their batch's forward failed, and their callers got 500; the log says why.",
            "suffix: images/s",
            Query(f'sum by (model) (rate(gradless_images_total{{{MODEL}, outcome="failed"}}{RATE}))', "{{model}}"),
        ),
        graph(
            "Stopped or short of memory",
            "In the last ten minutes: forwards that found no memory, batches split for it, models started anew.",
            "short",
            Query(f"sum by (model) (increase(gradless_out_of_memory_total{{{MODEL}}}[10m]))", "{{model}} no memory"),
            Query(f"sum by (model) (increase(gradless_batch_splits_total{{{MODEL}}}[10m]))", "{{model}} split"),
            Query(f"sum by (model) (increase(gradless_model_replacements_total{{{MODEL}}}[10m]))", "{{model}} anew"),
        ),
    ]
