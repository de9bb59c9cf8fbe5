"""A comparison in plain words, with its figures in them. Each sentence says only what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gradless.records import ArmName, ArmReport, LargestBatch, LeftOut, ModuleRetained, Spread
from gradless.units import in_bytes, in_seconds

_CALLED: Mapping[ArmName, str] = {
    "grad": "grad mode",
    "no_grad": "no_grad",
    "set_grad_enabled_false": "set_grad_enabled(False)",
    "inference_mode": "inference_mode",
    "frozen": "frozen parameters",
    "train": "train mode",
    "served": "what is served",
}

_MODES: tuple[ArmName, ...] = ("no_grad", "set_grad_enabled_false", "inference_mode")

# Quartiles of fewer say nothing.
_ENOUGH_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What there is to put into words. `asked` are the rounds asked for, `iterations` those that were run."""

    arms: Mapping[ArmName, ArmReport]
    left_out: tuple[LeftOut, ...]
    modules: tuple[ModuleRetained, ...]
    largest_batch: LargestBatch | None
    asked: int
    iterations: int
    sizes_left_out: tuple[int, ...]
    sizes_failed: Mapping[int, str]


def sentences(told: Told) -> tuple[str, ...]:
    return tuple(_all(told))


def _all(told: Told) -> Iterator[str]:
    arms = told.arms
    yield from _retained(arms)
    yield from _peaks(arms)
    yield from _seconds(arms, told.iterations)
    yield from _modules(arms, told.modules)
    yield from _largest(told.largest_batch)
    yield from _frozen(arms)
    yield from _train(arms)
    yield from _inference_tensors(arms)
    yield from _served(arms)
    yield from _missing(told)


def _retained(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    if grad := arms.get("grad"):
        yield f"With gradients on, this batch kept {in_bytes(grad.retained_bytes)} for a backward pass nobody runs."
    keeping = [arm for arm in _MODES if arm in arms]
    nothing = [arm for arm in keeping if arms[arm].retained_bytes == 0]
    if nothing:
        yield f"Under {_listed(nothing)} it kept nothing."
    for arm in keeping:
        if arm not in nothing:
            yield f"Under {_CALLED[arm]} it kept {in_bytes(arms[arm].retained_bytes)}, which it must not."


def _peaks(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    without = _one_without_gradients(arms)
    if "grad" not in arms or without is None:
        return
    high, low = arms["grad"].peak_bytes, without.peak_bytes
    if high and low:
        yield (
            f"At its peak the forward held {in_bytes(high)} with gradients and {in_bytes(low)} under "
            f"{_CALLED[without.arm]}: {high / low:.1f} times as much."
        )


def _seconds(arms: Mapping[ArmName, ArmReport], iterations: int) -> Iterator[str]:
    without = _one_without_gradients(arms)
    if "grad" not in arms or without is None:
        return
    grad, name = arms["grad"].seconds, _CALLED[without.arm]
    figures = f"{in_seconds(grad.median)} with gradients and {in_seconds(without.seconds.median)} under {name}"
    if iterations < _ENOUGH_ROUNDS:
        yield f"The forward took {figures}; {_counted(iterations, 'round')} cannot tell whether that is a difference."
    elif _overlap(grad, without.seconds):
        yield f"The forward took {figures}: these rounds vary too much to tell the two apart."
    else:
        ratio = grad.median / without.seconds.median
        change = f"{ratio - 1:.0%} more" if ratio >= 1 else f"{1 - ratio:.0%} less"
        yield f"The forward took {figures}: {change} with them."


def _modules(arms: Mapping[ArmName, ArmReport], modules: tuple[ModuleRetained, ...]) -> Iterator[str]:
    if modules and "grad" in arms:
        first = modules[0]
        share = first.retained_bytes / max(1, arms["grad"].retained_bytes)
        called = f"{first.module} ({first.type})" if first.module else f"the network itself ({first.type})"
        yield f"Of its modules {called} makes autograd keep most: {in_bytes(first.retained_bytes)}, {share:.0%} of all."


def _largest(largest: LargestBatch | None) -> Iterator[str]:
    if largest is not None:
        yield (
            f"Into the {in_bytes(largest.memory_bytes)} that were free, a batch of {largest.with_gradients:,} images "
            f"fits with gradients and one of {largest.without_gradients:,} without."
        )


def _frozen(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    if (frozen := arms.get("frozen")) and frozen.retained_bytes == 0 and not frozen.output.requires_grad:
        yield "With frozen parameters grad mode has nothing to record, and kept nothing either."


def _train(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    train = arms.get("train")
    if train is None or train.train is None:
        return
    found = train.train
    if found.batchnorm_buffers_moved:
        yield (
            f"In train mode, on a copy, one forward under no_grad moved {found.batchnorm_buffers_moved} of "
            f"{found.batchnorm_buffers} BatchNorm buffers: only eval() stops that."
        )
    if not found.runs_agree:
        yield "In train mode two runs on one input gave different answers: only eval() stops Dropout and its like."


def _inference_tensors(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    inference = arms.get("inference_mode")
    if inference is not None and inference.output.is_inference and not inference.output.version_counter_readable:
        yield "Under inference_mode outputs are inference tensors, without a version counter to keep."


def _served(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    served, reference = arms.get("served"), arms.get("inference_mode")
    if served is None:
        return
    kept = "nothing" if served.retained_bytes == 0 else in_bytes(served.retained_bytes)
    yield f"What requests get kept {kept}."
    if reference is not None:
        took = (
            f"It took {in_seconds(served.seconds.median)} from pixels to {{}}, and the loaded network "
            f"{in_seconds(reference.seconds.median)} under inference_mode"
        )
        if served.top1_agreement is None:
            yield f"{took.format('features')}."
        else:
            yield f"{took.format('logits')}; {served.top1_agreement:.0%} of their first places agree."


def _missing(told: Told) -> Iterator[str]:
    for left_out in told.left_out:
        yield f"The arm {left_out.arm} could not be run: {left_out.reason}"
    if told.iterations < told.asked:
        yield f"Time was up after {_counted(told.iterations, 'round')} of {told.asked}."
    for size, reason in told.sizes_failed.items():
        yield f"Of the sweep, batches of {size} could not be run: {reason}"
    if told.sizes_left_out:
        yield f"Time was up before batch sizes {', '.join(map(str, told.sizes_left_out))} of the sweep."


def _one_without_gradients(arms: Mapping[ArmName, ArmReport]) -> ArmReport | None:
    return next((arms[arm] for arm in reversed(_MODES) if arm in arms), None)


def _overlap(one: Spread, other: Spread) -> bool:
    return one.lower_quartile <= other.upper_quartile and other.lower_quartile <= one.upper_quartile


def _listed(arms: list[ArmName]) -> str:
    *others, last = (_CALLED[arm] for arm in arms)
    return f"{', '.join(others)} and {last}" if others else last


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
