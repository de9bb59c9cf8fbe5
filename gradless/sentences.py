"""Write the results of a comparison as sentences, which state only what was measured, and figures with their units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import comb

from gradless.records import (
    ArmName,
    ArmReport,
    Comparison,
    ComparisonOptions,
    LargestBatch,
    ModuleRetained,
    TimeVerdict,
)

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

# Fewer rounds cannot show a difference: with 8 that all agree, chance explains it in 0.8 % of comparisons.
_MIN_ROUNDS = 8
_MAX_FALSE_CLAIMS = 0.01

# Smaller differences are not claimed. Entering inference_mode once takes 2 to 10 µs more than entering grad mode,
# whatever the network does then, as measured on networks with no_grad in their forward.
_SMALLEST_SHARE = 0.02
_SMALLEST_SECONDS = 10e-6

_KILO = 1000

# A figure from here on rounds up to the next unit.
_ROUNDS_UP = 999.5


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
        if grad.retained_bytes is None:
            yield f"What this batch kept with gradients on could not be observed: {grad.retained_note}."
        else:
            kept = in_bytes(grad.retained_bytes) if grad.retained_bytes else "nothing"
            yield f"With gradients on, this batch kept {kept} for a backward pass that never runs."
        if grad.output.grad_fn:
            yield "The network was in eval mode: eval() alone does not keep autograd from recording."
    modes = [arm for arm in _MODES if arm in arms]
    keeping_nothing = [arm for arm in modes if arms[arm].retained_bytes == 0 and not arms[arm].output.requires_grad]
    if keeping_nothing:
        yield f"Under {_listed(keeping_nothing)} it kept nothing."
    for arm in modes:
        report = arms[arm]
        if report.output.requires_grad:
            reason = (
                "a mode holds only in the thread that enters it, and not where the forward turns gradients on"
                if report.output.grad_fn
                else "it is a parameter, or another leaf that does"
            )
            yield f"Under {_NAMES[arm]} the output requires grad all the same: {reason}."
        if report.retained_bytes is None:
            yield f"What it kept under {_NAMES[arm]} could not be observed: {report.retained_note}."
        elif report.retained_bytes:
            yield f"Under {_NAMES[arm]} it kept {in_bytes(report.retained_bytes)}, but should keep nothing."


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
    grad_seconds, seconds = arms["grad"].seconds.median, without.seconds.median
    yield (
        f"The forward took {in_seconds(grad_seconds)} with gradients and {in_seconds(seconds)} under "
        f"{_NAMES[without.arm]}: {time_difference(grad_seconds, seconds, without.against_grad, rounds)}."
    )


def time_verdict(seconds: Sequence[float], reference: Sequence[float]) -> TimeVerdict:
    """Return whether paired rounds show that `seconds` are less or more than `reference`, by a two-sided sign test.

    A pair counts for a difference if it differs by more than 2 % plus 10 µs, and else against it.
    """
    pairs, rounds = list(zip(seconds, reference, strict=True)), len(seconds)
    less = sum(_clearly_less(one, other) for one, other in pairs)
    more = sum(_clearly_less(other, one) for one, other in pairs)
    chance = 2 * sum(comb(rounds, number) for number in range(rounds - max(less, more) + 1)) / 2**rounds
    if rounds < _MIN_ROUNDS or chance > _MAX_FALSE_CLAIMS:
        return "no difference shown"
    return "less" if less > more else "more"


def _clearly_less(seconds: float, other: float) -> bool:
    return seconds * (1 + _SMALLEST_SHARE) + _SMALLEST_SECONDS < other


def time_difference(grad_seconds: float, seconds: float, verdict: TimeVerdict | None, rounds: int) -> str:
    """Say how much more or less time gradients took, unless `verdict` on `seconds` is that no difference was shown."""
    ratio = grad_seconds / seconds
    if verdict == "less" and ratio > 1:
        return f"{ratio - 1:.0%} more with gradients"
    if verdict == "more" and ratio < 1:
        return f"{1 - ratio:.0%} less with gradients"
    return f"{_counted(rounds, 'round')} {'does' if rounds == 1 else 'do'} not show a difference"


def _modules(arms: Mapping[ArmName, ArmReport], modules: tuple[ModuleRetained, ...]) -> Iterator[str]:
    if modules and "grad" in arms:
        first = modules[0]
        share = first.retained_bytes / sum(module.retained_bytes for module in modules)
        name = f"the module {first.module}" if first.module else "the network itself"
        yield f"Most of it comes from {name} ({first.type}): {in_bytes(first.retained_bytes)}, {share:.0%} of all."


def _largest(largest: LargestBatch | None) -> Iterator[str]:
    if largest is not None:
        yield (
            f"In {in_bytes(largest.memory_bytes)} of free memory, a batch of about {largest.with_gradients:,} "
            f"fits with gradients and one of about {largest.without_gradients:,} without."
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
    # A network whose runs differ in eval mode too, as with functional dropout, shows nothing about train mode.
    if not facts.runs_agree and facts.eval_runs_agree:
        effect = "turns off Dropout" if facts.dropouts else "makes them agree"
        yield f"In train mode two runs on one input gave different outputs: only eval() {effect}."


def _inference_tensors(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    inference = arms.get("inference_mode")
    if inference is not None and inference.output.is_inference and not inference.output.version_counter_readable:
        yield "Under inference_mode outputs are inference tensors, without a version counter."


def _served(arms: Mapping[ArmName, ArmReport]) -> Iterator[str]:
    served, reference = arms.get("served"), arms.get("inference_mode")
    if served is None:
        return
    if served.retained_bytes is None:
        yield f"What the served model kept could not be observed: {served.retained_note}."
    elif served.retained_bytes or not served.output.requires_grad:
        yield f"The served model kept {in_bytes(served.retained_bytes) if served.retained_bytes else 'nothing'}."
    else:
        yield "The output of the served model requires grad."
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


def _listed(arms: list[ArmName]) -> str:
    *others, last = (_NAMES[arm] for arm in arms)
    return f"{', '.join(others)} and {last}" if others else last


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_bytes(size: float) -> str:
    """Format a size with three significant figures in decimal units: 635,866,208 becomes "636 MB"."""
    *units, largest = ("bytes", "kB", "MB", "GB", "TB")
    for unit in units:
        if size < _ROUNDS_UP:
            return f"{size:.3g} {unit}"
        size /= _KILO
    return f"{size:.3g} {largest}"


def in_seconds(seconds: float) -> str:
    """Format a duration with three significant figures in s, ms or µs: 0.00425 becomes "4.25 ms"."""
    if seconds >= _ROUNDS_UP / _KILO:
        return f"{seconds:.3g} s"
    milliseconds = seconds * _KILO
    return f"{milliseconds:.3g} ms" if milliseconds >= 1 else f"{milliseconds * _KILO:.3g} µs"
