"""The dashboard *Autograd*: what the lens measured, by arm, and what serving without gradients saves."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from observe.dashboards.panels import MODEL, PanelBuilder, Query, bars, board, graph, number

_SECONDS = "gradless_forward_seconds"
_RETAINED = "gradless_forward_retained_bytes"
_PEAK = "gradless_forward_peak_bytes"

_ARMS = (
    "grad is plain PyTorch; no_grad, set_grad_enabled_false and inference_mode build no graph; frozen has parameters "
    "that ask for no gradient, train is train mode, served is the backend as it serves."
)


def autograd() -> Dashboard:
    return board(
        "gradless-autograd",
        "gradless: Autograd",
        "The last comparison of the lens, POST /debug/grad-modes: one forward in each arm. Empty before the first.",
        [("Saved", _saved()), ("By arm", _by_arm()), ("Over time", _over_time())],
    )


def _saved() -> list[PanelBuilder]:
    return [
        number(
            "Bytes saved",
            "What a forward with gradients keeps for a backward pass that nobody runs, and inference_mode does not.",
            "bytes",
            f"max({_arm(_RETAINED, 'grad')} - ignoring (mode) {_arm(_RETAINED, 'inference_mode')})",
            width=6,
        ),
        number(
            "Peak saved",
            "How much higher memory rises during a forward with gradients than under inference_mode.",
            "bytes",
            f"max({_arm(_PEAK, 'grad')} - ignoring (mode) {_arm(_PEAK, 'inference_mode')})",
            width=6,
        ),
        number(
            "Time with gradients over time served",
            "Of the same forward, in PyTorch's grad mode and by the backend that serves. Over 1, serving is faster.",
            "suffix: x",
            f"max({_arm(_SECONDS, 'grad')} / ignoring (mode) {_arm(_SECONDS, 'served')})",
            width=6,
        ),
        number(
            "Retained while serving",
            "Must be 0: served forwards keep nothing for a backward pass. Anything above is an alert.",
            "bytes",
            f"max({_arm(_RETAINED, 'served')})",
            bad_from=1,
            width=6,
        ),
    ]


def _by_arm() -> list[PanelBuilder]:
    return [
        bars("Retained bytes", f"Kept by autograd after the forward. {_ARMS}", "bytes", _of_each_arm(_RETAINED)),
        bars(
            "Peak bytes",
            f"Allocated at most during the forward. {_ARMS}",
            "bytes",
            _of_each_arm(_PEAK),
        ),
        bars("Forward", f"Median time of a forward. {_ARMS}", "s", _of_each_arm(_SECONDS)),
    ]


def _over_time() -> list[PanelBuilder]:
    return [
        graph(
            "Retained bytes, comparison by comparison",
            "Changes with the batch size asked for; between arms of one comparison it is the same.",
            "bytes",
            _of_each_arm(_RETAINED),
        ),
        graph(
            "Peak bytes, comparison by comparison",
            "An arm whose peak PyTorch cannot tell is left out.",
            "bytes",
            _of_each_arm(_PEAK),
        ),
        graph(
            "Forward, comparison by comparison",
            "Of a machine that also serves: the lens takes turns with requests, forward by forward.",
            "s",
            _of_each_arm(_SECONDS),
        ),
    ]


def _of_each_arm(metric: str) -> Query:
    # What was not measured is NaN, which no comparison with a number lets pass.
    return Query(f"max by (model, mode) ({metric}{{{MODEL}}} >= 0)", "{{model}} {{mode}}")


def _arm(metric: str, mode: str) -> str:
    return f'{metric}{{{MODEL}, mode="{mode}"}}'
