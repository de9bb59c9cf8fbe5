"""Write the results of a comparison as sentences. Each one states only what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gradless.records import (
    ArmName,
    ArmReport,
    Comparison,
    ComparisonOptions,
    LargestBatch,
    ModuleRetained,
    Spread,
)
from gradless.units import in_bytes, in_seconds

_NAMES: Mapping[ArmName, str] = {
    "grad": "grad mode",
    "no_grad": "no_grad",
    "set_grad_enabled_false": "set_grad_enabled(False)",
    "inference_mode": "inference_mode",
    "frozen": "frozen parameters",
    "train": "train mode",
    "served": "the served model",
}

_MODES: tuple[ArmName, ...] = ("no_grad", "set_grad_enabled_false", "inference_mode")

# Quartiles of fewer rounds are meaningless.
_ENOUGH_ROUNDS = 3


def sentences(comparison: Comparison, options: ComparisonOptions, failed_sizes: Mapping[int, str]) -> Iterator[str]:
    """Yield the results as sentences. `failed_sizes` maps batch sizes of the sweep that could not run to the reason."""
    arms = {report.arm: report for report in comparison.arms}
    yield from _retained(arms)
    yield from _peaks(arms)
    yield from _seconds(arms, comparison.iterations)
    yield from _modules(arms, comparison.modules)
    yield from _largest(comparison.largest_batch)
    yield from _frozen(arms)
    yield from _train(arms)
    yield from _inference_tensors(arms)
    yield from _served(arms)
    yield from _missing(comparison, options, failed_sizes)


def _retained(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    if grad := arms.get("grad"):
        yield f"With gradients on, this batch kept {in_bytes(grad.retained_bytes)} for a backward pass that never runs."
    modes = [arm for arm in _MODES if arm in arms]
    keeping_nothing = [arm for arm in modes if arms[arm].retained_bytes == 0]
    if keeping_nothing:
        yield f"Under {_listed(keeping_nothing)} it kept nothing."
    for arm in modes:
        if arm not in keeping_nothing:
            yield f"Under {_NAMES[arm]} it kept {in_bytes(arms[arm].retained_bytes)}, but should keep nothing."


def _peaks(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    without = _one_without_gradients(arms)
    if "grad" not in arms or without is None:
        return
    high, low = arms["grad"].peak_bytes, without.peak_bytes
    if high and low:
        yield (
            f"At its peak the forward held {in_bytes(high)} with gradients and {in_bytes(low)} under "
            f"{_NAMES[without.arm]}: {high / low:.1f} times as much."
        )


def _seconds(arms: Mapping[ArmName, ArmReport], rounds: int) -> Iterator[str]:
    without = _one_without_gradients(arms)
    if "grad" not in arms or without is None:
        return
    grad, name = arms["grad"].seconds, _NAMES[without.arm]
    figures = f"{in_seconds(grad.median)} with gradients and {in_seconds(without.seconds.median)} under {name}"
    if rounds < _ENOUGH_ROUNDS:
        yield f"The forward took {figures}; {_counted(rounds, 'round')} cannot show whether that is a difference."
    elif _overlap(grad, without.seconds):
        yield f"The forward took {figures}: these rounds vary too much to show a difference."
    else:
        ratio = grad.median / without.seconds.median
        change = f"{ratio - 1:.0%} more" if ratio >= 1 else f"{1 - ratio:.0%} less"
        yield f"The forward took {figures}: {change} with gradients."


def _modules(arms: Mapping[ArmName, ArmReport], modules: tuple[ModuleRetained, ...]) -> Iterator[str]:
    if modules and "grad" in arms:
        first = modules[0]
        share = first.retained_bytes / max(1, arms["grad"].retained_bytes)
        name = f"the module {first.module}" if first.module else "the network itself"
        yield f"Most of it comes from {name} ({first.type}): {in_bytes(first.retained_bytes)}, {share:.0%} of all."


def _largest(largest: LargestBatch | None) -> Iterator[str]:
    if largest is not None:
        yield (
            f"In {in_bytes(largest.memory_bytes)} of free memory, a batch of {largest.with_gradients:,} images "
            f"fits with gradients and one of {largest.without_gradients:,} without."
        )


def _frozen(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    if (frozen := arms.get("frozen")) and frozen.retained_bytes == 0 and not frozen.output.requires_grad:
        yield "With frozen parameters grad mode recorded nothing, and kept nothing either."


def _train(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    train = arms.get("train")
    if train is None or train.train is None:
        return
    facts = train.train
    if facts.batchnorm_buffers_moved:
        yield (
            f"In train mode, on a copy, one forward under no_grad changed {facts.batchnorm_buffers_moved} of "
            f"{facts.batchnorm_buffers} BatchNorm buffers: only eval() prevents that."
        )
    if not facts.runs_agree:
        yield "In train mode two runs on one input gave different outputs: only eval() turns off Dropout."


def _inference_tensors(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    inference = arms.get("inference_mode")
    if inference is not None and inference.output.is_inference and not inference.output.version_counter_readable:
        yield "Under inference_mode outputs are inference tensors, without a version counter."


def _served(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    served, reference = arms.get("served"), arms.get("inference_mode")
    if served is None:
        return
    kept = "nothing" if served.retained_bytes == 0 else in_bytes(served.retained_bytes)
    yield f"The served model kept {kept}."
    if reference is not None:
        end = "features" if served.top1_agreement is None else "logits"
        agreement = "" if served.top1_agreement is None else f"; {served.top1_agreement:.0%} of the top classes agree"
        yield (
            f"It took {in_seconds(served.seconds.median)} from pixels to {end}, and the loaded network "
            f"{in_seconds(reference.seconds.median)} under inference_mode{agreement}."
        )


def _missing(comparison: Comparison, options: ComparisonOptions, failed_sizes: Mapping[int, str]) -> Iterator[str]:
    for left_out in comparison.left_out:
        yield f"The arm {left_out.arm} could not be run: {left_out.reason}"
    if comparison.iterations < options.iterations:
        yield f"Time was up after {_counted(comparison.iterations, 'round')} of {options.iterations}."
    for size, reason in failed_sizes.items():
        yield f"Batch size {size} of the sweep could not be run: {reason}"
    skipped = set(options.sweep) - {point.batch_size for point in comparison.sweep} - set(failed_sizes)
    if skipped:
        yield f"Time was up before batch sizes {', '.join(map(str, sorted(skipped)))} of the sweep."


def _one_without_gradients(arms: Mapping[ArmName, ArmReport]) -> ArmReport | None:
    return next((arms[arm] for arm in reversed(_MODES) if arm in arms), None)


def _overlap(one: Spread, other: Spread) -> bool:
    return one.lower_quartile <= other.upper_quartile and other.lower_quartile <= one.upper_quartile


def _listed(arms: list[ArmName]) -> str:
    *others, last = (_NAMES[arm] for arm in arms)
    return f"{', '.join(others)} and {last}" if others else last


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
