"""Compare the arms: run one batch through every arm, and repeat it at other batch sizes."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn

from gradless.arms import Subject, arm_of, subject_with
from gradless.budget import Prediction, Trial, run_trial
from gradless.errors import ComparisonCancelledError
from gradless.measuring import ComparisonProgress, Measured, Measuring, isolate_failure
from gradless.memory import prepare_profiler
from gradless.outputs import train_facts, try_backward
from gradless.records import (
    ARMS,
    ArmName,
    Backward,
    Comparison,
    ComparisonOptions,
    LeftOut,
    ModuleRetained,
    SweepPoint,
    SweptArm,
    TrainFacts,
)
from gradless.sentences import sentences

_UNSERVED: tuple[ArmName, ...] = tuple(name for name in ARMS if name != "served")

_SWEEP_ROUNDS = 3

Item = TypeVar("Item")


def compare(
    network: nn.Module,
    *args: Any,
    arms: ArmName | Iterable[ArmName] = _UNSERVED,
    iterations: int = 12,
    sweep: Iterable[int] = (),
    modules: bool = True,
    seconds: float = 60.0,
    force: bool = False,
    **kwargs: Any,
) -> Comparison:
    """Compare the arms on any network in eval mode, called as `network(*args, **kwargs)`, on its device.

    Arguments may be tensors, and tuples, lists and dicts of them. The first dimension of the first one is the batch;
    other batch sizes cut or repeat every tensor that has it. The options are those of ComparisonOptions, and never
    arguments of the network.

    Network and arguments are not changed. A compiled network is not supported: the hooks would compile it again.
    Raises ValueError for a network in train mode and for an unknown arm, TypeError without a tensor, RuntimeError while
    a profiler runs, ComparisonTooLargeError, and what a forward raises if no arm can run.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: a torch.nn.Module is needed, not a {type(network).__name__}")
    if any(module.training for module in network.modules()):
        raise ValueError("the network is in train mode, where comparing it would change it; call eval() first")
    arms = (arms,) if isinstance(arms, str) else _items("arms", arms, "('grad', 'no_grad')")
    if wrong := [name for name in arms if name not in _UNSERVED]:
        raise ValueError(f"there is no arm {wrong[0]!r} here; there is {', '.join(_UNSERVED)}")
    subject, size = subject_with(network, args, kwargs)
    options = ComparisonOptions(
        arms=arms,
        batch_size=size,
        iterations=iterations,
        sweep=_items("sweep", sweep, "(1, 2, 4)"),
        modules=modules,
        seconds=seconds,
        force=force,
    )
    # Not in `run_comparison`: other threads of a server draw from the random states of the process.
    with _random_states_restored():
        return run_comparison(subject, options, ComparisonProgress())


def _items(option: str, given: Iterable[Item], example: str) -> tuple[Item, ...]:
    try:
        return tuple(given)
    except TypeError:
        raise TypeError(f"{option}: a sequence is needed, such as {example}, not {given!r}") from None


def run_comparison(subject: Subject, options: ComparisonOptions, progress: ComparisonProgress) -> Comparison:
    """Run one comparison in any autograd mode of the calling thread, and leave no trace of it.

    inference_mode is left, because enable_grad records nothing in it. PyTorch's random states are restored, and cached
    memory is released. Raises RuntimeError while a profiler runs: the comparison's own would end it.
    """
    if torch._C._autograd._profiler_enabled():  # noqa: SLF001 - it has no public name
        raise RuntimeError("a profiler is running, and a comparison needs the profiler itself; end yours first")
    prepare_profiler()
    try:
        devices = [subject.device] if subject.device.type == "cuda" else []
        with torch.inference_mode(False), torch.random.fork_rng(devices=devices):
            return _Run(subject, options, progress).run()
    finally:
        subject.release(subject.device)


@contextmanager
def _random_states_restored() -> Iterator[None]:
    """Restore the random states of Python, and of NumPy if it is loaded, which a forward may advance."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


class _Run:
    """Runs the forwards of one comparison, holding the subject's lock for one forward at a time."""

    def __init__(self, subject: Subject, options: ComparisonOptions, progress: ComparisonProgress) -> None:
        self._subject = subject
        self._options = options
        self._progress = progress
        self._started_at = perf_counter()
        self._left_out: list[LeftOut] = []
        self._trials: dict[ArmName, Trial] = {}
        self._failed_sizes: dict[int, str] = {}
        self._sweep_rounds = min(_SWEEP_ROUNDS, options.iterations)

    def run(self) -> Comparison:
        subject, options = self._subject, self._options
        free_bytes = subject.free_bytes(subject.device)
        prediction = self._try_arms()
        prediction.check(options, free_bytes)
        arms = list(self._trials)
        swept = len(set(options.sweep) - {options.batch_size})
        self._progress.expect(len(arms) * (2 + options.iterations + swept * (self._sweep_rounds + 1)))
        measuring = Measuring(subject, subject.batch(options.batch_size), self._progress)
        measured = self._examine(arms, measuring)
        reference = self._reference(measured, measuring)
        rounds = self._time(measured, measuring)
        # A second forward tells new storages from older ones.
        for each in measured:
            each.kept = measuring.retained(each.arm, each.examination.saved, "memory")
        grad = next((each for each in measured if each.arm.name == "grad"), None)
        modules = self._modules(grad, measuring) if grad is not None and options.modules else ()
        known = tuple(each.swept() for each in measured)
        sweep = self._sweep([each.arm.name for each in measured], known)
        comparison = Comparison(
            model=subject.model,
            fingerprint=subject.fingerprint,
            architecture=subject.architecture,
            device=str(subject.device),
            dtype=subject.dtype,
            backend=subject.backend,
            batch_size=options.batch_size,
            iterations=rounds,
            input=subject.input,
            torch=torch.__version__,
            arms=tuple(each.reported(reference, grad, classes=subject.classes) for each in measured),
            left_out=tuple(self._left_out),
            modules=modules,
            sweep=tuple(sweep),
            largest_batch=prediction.largest_batch([*sweep, SweepPoint(options.batch_size, known)], free_bytes),
            sentences=(),
        )
        return replace(comparison, sentences=tuple(sentences(comparison, options, self._failed_sizes)))

    def _try_arms(self) -> Prediction:
        """Run a small batch of each arm that can run, and return the prediction from them.

        Each batch size gets copies of its own, because a network may keep state that has the size of its batches.
        """
        for name in self._options.arms:
            self._progress.check()
            with self._left_out_on_failure(name):
                self._trials[name] = run_trial(arm_of(name, self._subject), self._subject, self._progress.check)
        return Prediction(self._trials, self._subject.batch(1).nbytes, self._subject.weight_bytes)

    def _examine(self, arms: list[ArmName], measuring: Measuring) -> list[Measured]:
        """Examine a forward of each arm, which also warms it up for the timed rounds."""
        measured: list[Measured] = []
        for name in arms:
            with self._left_out_on_failure(name):
                backward, train = self._check_small(name)
                arm = arm_of(name, self._subject)
                measured.append(Measured(arm, backward, measuring.examine(arm, "memory"), train=train))
        return measured

    def _check_small(self, name: ArmName) -> tuple[Backward, TrainFacts | None]:
        """Check what needs no more than the smallest batch that the arm can run."""
        subject = self._subject
        arm, inputs = arm_of(name, subject), subject.batch(self._trials[name].batch_size)
        self._progress.begin("warming up")
        with subject.lock:
            backward = try_backward(arm, subject, inputs)
        if name != "train":
            return backward, None
        self._progress.expect(1)
        self._progress.begin("warming up")
        with subject.lock:
            return backward, train_facts(arm, subject, inputs)

    def _left_out_on_failure(self, name: ArmName) -> AbstractContextManager[None]:
        """Leave the arm out if the block raises: a network may fail in train mode, or when it is copied."""
        return isolate_failure(lambda reason: self._left_out.append(LeftOut(name, reason)))

    def _reference(self, measured: list[Measured], measuring: Measuring) -> list[torch.Tensor]:
        """Return the answer under inference_mode, also if that arm is not one of the options.

        If it cannot run, return that of the first arm that can; if none can, raise the error.
        """
        for each in measured:
            if each.arm.name == "inference_mode":
                return each.examination.answer
        self._progress.expect(1)
        try:
            return measuring.examine(arm_of("inference_mode", self._subject), "memory").answer
        except ComparisonCancelledError:
            raise
        except Exception:
            if not measured:
                raise
            return measured[0].examination.answer

    def _time(self, measured: list[Measured], measuring: Measuring) -> int:
        """Time rounds over all arms until the options' number or time is reached. Return the number of rounds."""
        arms = [each.arm for each in measured]
        for number in range(self._options.iterations):
            began_at = perf_counter()
            seconds = measuring.round(arms, "timing", number)
            for each in measured:
                each.seconds.append(seconds[each.arm.name])
            # Another round, and the forwards after it, must also fit.
            ended_at = perf_counter()
            if ended_at + 1.5 * (ended_at - began_at) > self._started_at + self._options.seconds:
                self._progress.expect(-len(arms) * (self._options.iterations - number - 1))
                return number + 1
        return self._options.iterations

    def _modules(self, grad: Measured, measuring: Measuring) -> tuple[ModuleRetained, ...]:
        """Return the table by module, empty if the network does not allow hooks on its modules."""
        modules: list[ModuleRetained] = []
        if grad.examination.saved is not None and grad.kept is not None and grad.kept.bytes:
            with isolate_failure(lambda _: None):
                modules += measuring.modules(grad.arm, grad.examination.saved)
        return tuple(modules)

    def _sweep(self, arms: list[ArmName], known: tuple[SweptArm, ...]) -> list[SweepPoint]:
        """Measure each batch size of the sweep, smallest first, while its time lasts.

        `known`, at the batch size of the comparison, is not measured again.
        """
        points: list[SweepPoint] = []
        started_at, seconds_per_image = perf_counter(), 0.0
        for size in sorted(set(self._options.sweep)):
            if size == self._options.batch_size:
                points.append(SweepPoint(size, known))
                continue
            began_at = perf_counter()
            if seconds_per_image and began_at - started_at + size * seconds_per_image > self._options.seconds:
                break
            with isolate_failure(partial(self._failed_sizes.__setitem__, size)):
                points.append(SweepPoint(size, self._swept(arms, size)))
                seconds_per_image = (perf_counter() - began_at) / size
        return points

    def _swept(self, names: list[ArmName], size: int) -> tuple[SweptArm, ...]:
        measuring = Measuring(self._subject, self._subject.batch(size), self._progress)
        arms = [arm_of(name, self._subject) for name in names]
        examined = [measuring.examine(arm, "sweep") for arm in arms]
        timed = [measuring.round(arms, "sweep", number) for number in range(self._sweep_rounds)]
        points: list[SweptArm] = []
        for arm, examination in zip(arms, examined, strict=True):
            kept = measuring.retained(arm, examination.saved, "sweep")
            seconds = median(each[arm.name] for each in timed)
            points.append(SweptArm(arm.name, seconds, None if kept is None else kept.bytes, examination.peak.bytes))
        return tuple(points)
