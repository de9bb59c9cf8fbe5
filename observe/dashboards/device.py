"""Of the dashboard *Service*: batches, the queue before them, memory, and how busy it all is."""

from __future__ import annotations

from observe.dashboards.panels import INSTANCE, MODEL, RATE, PanelBuilder, Query, graph, heat


def batches() -> list[PanelBuilder]:
    return [
        heat(
            "Batch size",
            "How many images a forward has. An idle device takes one at once; a busy one finds more waiting.",
            "short",
            f"sum by (le) (rate(gradless_batch_size_bucket{{{MODEL}}}{RATE}))",
        ),
        graph(
            "Batch size: mean",
            "Images in a forward on average, beside the most there may be (GRADLESS_MAX_BATCH_SIZE).",
            "short",
            Query(f"instance_model:gradless_batch_size:mean_rate5m{{{MODEL}}}", "{{instance}} {{model}}"),
            Query(f"max(gradless_batch_size_limit{{{MODEL}}})", "limit"),
        ),
        graph(
            "Batch efficiency",
            "Mean size over the largest allowed. Low with an idle device is well; low with a busy one, look at decode.",
            "percentunit",
            Query(f"instance_model:gradless_batch_efficiency:ratio_rate5m{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        graph(
            "Batches by trigger",
            "What let a batch go: an idle device, a full batch, the end of the wait for company, or a drain.",
            "suffix: batches/s",
            Query(f"sum by (trigger) (rate(gradless_batches_total{{{MODEL}}}{RATE}))", "{{trigger}}"),
            width=12,
        ),
        graph(
            "Age of the batch under way",
            "0 between batches. One that only grows is a forward that hangs; over 30 s is an alert.",
            "s",
            Query(f"gradless_batch_running_seconds{{{MODEL}}}", "{{instance}} {{model}}"),
            width=12,
        ),
    ]


def queue() -> list[PanelBuilder]:
    return [
        graph(
            "Images waiting for a batch",
            "Decoded and in line. What arrives while a forward runs is the next batch, so some is as it should be.",
            "short",
            Query(f"gradless_queue_depth{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        graph(
            "Age of the first in line",
            "How long the image that came first has waited.",
            "s",
            Query(f"gradless_queue_oldest_age_seconds{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        graph(
            "Images in the building",
            "Admitted and not yet answered, beside the places there are (GRADLESS_QUEUE_CAPACITY).",
            "short",
            Query(f"gradless_in_flight_images{{{MODEL}}}", "{{instance}} {{model}}"),
            Query(f"max(gradless_queue_capacity_images{{{MODEL}}})", "places"),
        ),
    ]


def memory_and_device() -> list[PanelBuilder]:
    return [
        graph(
            "Memory of the device",
            "allocated, reserved and peak are PyTorch's, free and total the driver's. On a CPU allocated is the "
            "process's resident memory, free and total are its container's or, where that has no limit, the machine's.",
            "bytes",
            Query(f"gradless_device_memory_bytes{{{INSTANCE}}}", "{{instance}} {{device}} {{kind}}"),
        ),
        graph(
            "Memory in use",
            "Share of the device's memory that cannot be had; what PyTorch keeps on a GPU for reuse counts as free. "
            "Over 90 % is an alert.",
            "percentunit",
            Query(f"instance_device:gradless_device_memory_used:ratio{{{INSTANCE}}}", "{{instance}} {{device}}"),
        ),
        graph(
            "Bytes of the models",
            "Parameters and buffers of each model: what has to fit in before any activation.",
            "bytes",
            Query(f"gradless_model_weights_bytes{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        graph(
            "Busy",
            "Share of the time with a forward under way, and the device's own figure (NVML) where it has one. At 1 "
            "the device is the limit.",
            "percentunit",
            Query(f"instance_model:gradless_forward_busy:ratio_rate5m{{{MODEL}}}", "{{instance}} {{model}}"),
            Query(
                f"gradless_device_utilization_ratio{{{INSTANCE}}} or on (job, instance) "
                f"sum by (job, instance) (instance_model:gradless_forward_busy:ratio_rate5m{{{MODEL}}})",
                "{{instance}} {{device}} in all",
            ),
        ),
        graph(
            "Processor time",
            "Cores that the process keeps busy: decoding, and on a CPU the forwards.",
            "suffix: cores",
            Query(f'rate(process_cpu_seconds_total{{job="gradless", {INSTANCE}}}{RATE})', "{{instance}}"),
        ),
        graph(
            "Memory of the process",
            "Resident memory of the server's process, with decoded images and what its allocators keep.",
            "bytes",
            Query(f'process_resident_memory_bytes{{job="gradless", {INSTANCE}}}', "{{instance}}"),
        ),
    ]
