"""Sections of the page other than servers under load: the null model, preprocessing, starts, agreement. A section
without measurements is empty."""

from __future__ import annotations

from benchmarks import comparisons
from benchmarks.comparisons import BUSY, Kept
from benchmarks.markdown import over_rounds, percent, table
from benchmarks.servers import NULL
from benchmarks.tables import ceilings


def server_alone(kept: Kept) -> list[str]:
    """Return the section on the null model: the cost of HTTP, queue and batches."""
    own = [m for m in kept if (m.kind, m.model, m.load) == ("closed", NULL, BUSY)]
    if not own:
        return []
    decoding = comparisons.by_turn(kept, comparisons.rate, "ceiling", "decode", model=NULL)
    rows = []
    for server in dict.fromkeys(m.server for m in own):
        of_server = [m for m in own if m.server == server]
        row = [server.removeprefix("gradless "), over_rounds(m.images_per_second for m in of_server)]
        row += [over_rounds(decoding.values()), over_rounds(comparisons.of_decoding(kept, server))]
        row += [over_rounds(m.latency_ms[name] for m in of_server) for name in ("p50", "p99")]
        row += [over_rounds(m.server_cpu_ms_per_image for m in of_server)]
        rows.append([*row, percent(max(m.client_cpu_share for m in of_server))])
    head = ["", "images/s", "decoding alone, images/s", "ratio", "p50 ms", "p99 ms", "CPU ms per image", "client CPU"]
    return [
        "",
        "## The server itself",
        "",
        f"gradless with the null model at {BUSY} connections, against decoding alone in process on all cores, right",
        "after it. The rest is HTTP, queue, batches, answers, and the client, which runs on the same cores. With HTTP",
        "workers, as on a GPU, several processes read and decode, and Python's threads wait for one another less.",
        "",
        *table(head, rows),
        *ceilings([m for m in kept if m.model == NULL]),
    ]


def preprocessing(kept: Kept) -> list[str]:
    """Return the section on CPU time by size."""
    chosen = [m for m in kept if m.kind == "preprocessing"]
    rows = []
    for size in dict.fromkeys(m.size for m in chosen):
        of_size = [m for m in chosen if m.size == size]
        ways = [over_rounds(m.figures["cpu_ms"] for m in of_size if m.server == way) for way in ("gradless", "Pillow")]
        rows.append([size, *ways, over_rounds(comparisons.preprocessing(kept, size))])
    head = ["size", "gradless, CPU ms", "Pillow, CPU ms", "ratio"]
    lines = [
        "",
        "## Decode, resize and crop",
        "",
        "CPU time of one image in one thread, in process: by gradless, and by the presets of torchvision's weights on",
        "a Pillow image, with the same interpolation.",
        "",
    ]
    return [*lines, *table(head, rows)] if rows else []


def starts(kept: Kept) -> list[str]:
    """Return the section on starts."""
    names = dict.fromkeys(name for m in kept if m.kind == "start" for name in m.figures)
    rows = [[_spelled(name), over_rounds(comparisons.start_seconds(kept, name))] for name in names]
    lines = [
        "",
        "## Start to ready",
        "",
        "The default model in the default configuration, from the start of the process to the first 200 of `/readyz`:",
        "with an empty cache folder, then with a filled one. Files are in the page cache. Imports run one after",
        "another in a process of their own, each without those before it.",
        "",
    ]
    return [*lines, *table(["what", "seconds"], rows)] if rows else []


def _spelled(figure_name: str) -> str:
    what = figure_name.removesuffix("_s")
    module = what.removeprefix("import_")
    return f"{what} start" if module == what else f"of it `import {module}`"


def agreement(kept: Kept, pictures: str) -> list[str]:
    """Return the section on engines against the reference."""
    chosen = [m for m in kept if m.kind == "agreement"]
    rows = [
        [
            m.server,
            f"{m.figures['agreeing']:.0f} of {m.figures['images']:.0f}",
            percent(m.figures["agreeing"] / m.figures["images"]),
            f"{m.figures['largest_difference']:.2g}",
        ]
        for m in chosen
    ]
    lines = [
        "",
        "## Agreement",
        "",
        "Each engine with gradless's decode against the original network in eager fp32 with Pillow's decode and",
        f"resize. Pictures: {pictures}. int8 is calibrated on the same folder.",
    ]
    if pictures.startswith("drawn"):
        lines += [
            "The network does not know the drawn pictures, and its probabilities are close; photographs, by",
            "`--images`, show more.",
        ]
    head = ["engine", "same top-1 class", "", "largest difference of a probability"]
    return [*lines, "", *table(head, rows)] if rows else []
