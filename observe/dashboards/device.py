"""Rows of the dashboard *Service*: batches, queue, memory and device."""

from __future__ import annotations

from observe.dashboards.panels import INSTANCE, MODEL, RATE, PanelBuilder, Query, graph, heat


def batches() -> list[PanelBuilder]:
    return [
        heat(
            "Batch size",
            "Images per forward. An idle device starts an image at once; images that arrive meanwhile share a batch.",
            "short",
            f"sum by (le) (rate(gradless_batch_size_bucket{{{MODEL}}}{RATE}))",
        ),
        graph(
            "Batch size: mean",
            "Mean of images per forward, and the limit (GRADLESS_MAX_BATCH_SIZE, lower after running out of memory).",
            "short",
            Query(
                f"instance_model_device:gradless_batch_size:mean_rate5m{{{MODEL}}}", "{{instance}} {{model}} {{device}}"
            ),
            Query(f"max(gradless_batch_size_limit{{{MODEL}}})", "limit"),
        ),
        graph(
            "Batch efficiency",
            "Mean batch size over its limit. Low is normal on an idle device; on a busy one, decoding is too slow.",
            "percentunit",
            Query(
                f"instance_model_device:gradless_batch_efficiency:ratio_rate5m{{{MODEL}}}",
                "{{instance}} {{model}} {{device}}",
            ),
        ),
        graph(
            "Batches by trigger",
            "What started a batch: an idle device, a full batch, the end of the batching delay, or draining.",
            "suffix: batches/s",
            Query(f"sum by (trigger) (rate(gradless_batches_total{{{MODEL}}}{RATE}))", "{{trigger}}"),
            width=12,
        ),
        graph(
            "Age of the running batch",
            "0 between batches. A forward that hangs makes it grow; above 30 s there is an alert.",
            "s",
            Query(f"gradless_batch_running_seconds{{{MODEL}}}", "{{instance}} {{model}} {{device}}"),
            width=12,
        ),
    ]


def queue() -> list[PanelBuilder]:
    return [
        graph(
            "Images waiting for a batch",
            "Decoded images in the queue. Those that arrive during a forward form the next batch, so some are normal.",
            "short",
            Query(f"gradless_queue_depth{{{MODEL}}}", "{{instance}} {{model}} {{device}}"),
        ),
        graph(
            "Waiting time of the oldest image",
            "Seconds that the oldest image has waited in the queue.",
            "s",
            Query(f"gradless_queue_oldest_age_seconds{{{MODEL}}}", "{{instance}} {{model}} {{device}}"),
        ),
        graph(
            "Images in flight",
            "Admitted and not yet answered, and the capacity (GRADLESS_QUEUE_CAPACITY).",
            "short",
            Query(f"gradless_in_flight_images{{{MODEL}}}", "{{instance}} {{model}}"),
            Query(f"max(gradless_queue_capacity_images{{{MODEL}}})", "capacity"),
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
            "Share of the device's memory in use; what PyTorch keeps on a GPU for reuse counts as free. "
            "Above 90 % there is an alert.",
            "percentunit",
            Query(f"instance_device:gradless_device_memory_used:ratio{{{INSTANCE}}}", "{{instance}} {{device}}"),
        ),
        graph(
            "Bytes of the models",
            "Parameters and buffers of each model, which need memory before any activation.",
            "bytes",
            Query(f"gradless_model_weights_bytes{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        graph(
            "Busy",
            "Share of the time during which a forward was running, and the device's utilization (NVML) if available. "
            "At 1 the device is the bottleneck.",
            "percentunit",
            Query(
                f"instance_model_device:gradless_forward_busy:ratio_rate5m{{{MODEL}}}",
                "{{instance}} {{model}} {{device}}",
            ),
            Query(
                f"gradless_device_utilization_ratio{{{INSTANCE}}} or on (job, instance, device) "
                f"sum by (job, instance, device) (instance_model_device:gradless_forward_busy:ratio_rate5m{{{MODEL}}})",
                "{{instance}} {{device}} total",
            ),
        ),
        graph(
            "Processor time",
            "CPU cores in use: for decoding, and on a CPU for forwards.",
            "suffix: cores",
            Query(f'rate(process_cpu_seconds_total{{job="gradless", {INSTANCE}}}{RATE})', "{{instance}}"),
        ),
        graph(
            "Memory of the processes",
            "Resident memory of the server's processes, with decoded images and memory that allocators keep.",
            "bytes",
            Query(f'process_resident_memory_bytes{{job="gradless", {INSTANCE}}}', "{{instance}}"),
        ),
    ]
