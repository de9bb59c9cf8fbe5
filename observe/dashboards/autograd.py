"""The dashboard *Autograd*: the lens's last comparison by arm, and what serving without gradients saves."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from observe.dashboards.panels import MODEL, PanelBuilder, Query, bars, board, graph, number

_SECONDS = "gradless_forward_seconds"
_RETAINED = "gradless_forward_retained_bytes"
_PEAK = "gradless_forward_peak_bytes"

_ARMS = (
    "grad is plain PyTorch; no_grad, set_grad_enabled_false and inference_mode build no graph; frozen has parameters "
    "with requires_grad=False, train is train mode, served is the serving backend."
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
            "Bytes that a forward with gradients keeps for a backward pass; inference_mode keeps none.",
            "bytes",
            f"max({_arm(_RETAINED, 'grad')} - ignoring (mode) {_arm(_RETAINED, 'inference_mode')})",
            width=6,
        ),
        number(
            "Peak saved",
            "Difference in peak memory between a forward with gradients and one under inference_mode.",
            "bytes",
            f"max({_arm(_PEAK, 'grad')} - ignoring (mode) {_arm(_PEAK, 'inference_mode')})",
            width=6,
        ),
        number(
            "Time with gradients over time served",
            "Ratio of the same forward in PyTorch's grad mode and by the serving backend. Above 1, serving is faster.",
            "suffix: x",
            f"max({_arm(_SECONDS, 'grad')} / ignoring (mode) {_arm(_SECONDS, 'served')})",
            width=6,
        ),
        number(
            "Retained while serving",
            "Must be 0: served forwards keep nothing for a backward pass. Above 0 there is an alert. Of models whose "
            "backend runs outside PyTorch, where this cannot be observed, it is the arm inference_mode.",
            "bytes",
            # NaN, which compares with nothing, is a value that was not observed.
            f"max({_arm(_RETAINED, 'served')} >= 0 or ignoring (mode) {_arm(_RETAINED, 'inference_mode')})",
            bad_from=1,
            width=6,
        ),
    ]


def _by_arm() -> list[PanelBuilder]:
    return [
        bars("Retained bytes", f"Kept by autograd after the forward. {_ARMS}", "bytes", _by_mode(_RETAINED)),
        bars("Peak bytes", f"Peak of allocated bytes during the forward. {_ARMS}", "bytes", _by_mode(_PEAK)),
        bars("Forward", f"Median forward time. {_ARMS}", "s", _by_mode(_SECONDS)),
    ]


def _over_time() -> list[PanelBuilder]:
    return [
        graph(
            "Retained bytes by comparison",
            "Changes with the batch size of the comparison; all arms of a comparison use the same one.",
            "bytes",
            _by_mode(_RETAINED),
        ),
        graph("Peak bytes by comparison", "Without arms whose peak PyTorch cannot measure.", "bytes", _by_mode(_PEAK)),
        graph(
            "Forward by comparison",
            "Measured while serving: the lens alternates with requests, forward by forward.",
            "s",
            _by_mode(_SECONDS),
        ),
    ]


def _by_mode(metric: str) -> Query:
    # An arm that was not measured is NaN, which `>= 0` filters out.
    return Query(f"max by (model, mode) ({metric}{{{MODEL}}} >= 0)", "{{model}} {{mode}}")


def _arm(metric: str, mode: str) -> str:
    return f'{metric}{{{MODEL}, mode="{mode}"}}'
