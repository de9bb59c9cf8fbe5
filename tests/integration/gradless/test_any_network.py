"""The lens on networks of every kind: what it measures, what it leaves alone, and arms that fail."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from gradless import compare, memory
from gradless.arms import Arm, subject_with
from gradless.comparison import run_comparison
from gradless.errors import ComparisonTooLargeError
from gradless.measuring import ComparisonProgress, Measuring
from gradless.records import ArmName, ArmReport, Comparison, ComparisonOptions
from gradless.retained import saved_by

pytestmark = pytest.mark.usefixtures("one_core")

ROWS = torch.rand(4, 16)


class Custom(nn.Module):
    """Runs `function` with itself and its input; the keywords are its attributes."""

    def __init__(self, function: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def linear(outputs: int = 8) -> nn.Linear:
    return nn.Linear(16, outputs)


def compared(network: nn.Module, *args: Any, **options: Any) -> Comparison:
    return compare(network.eval(), *(args or (ROWS,)), iterations=1, **options)


def by_arm(comparison: Comparison) -> dict[ArmName, ArmReport]:
    return {report.arm: report for report in comparison.arms}


def said(comparison: Comparison, part: str) -> list[str]:
    return [sentence for sentence in comparison.sentences if part in sentence]


@dataclass
class Found:
    labels: torch.Tensor
    scores: torch.Tensor


def with_an_attribute_that_is_no_leaf() -> nn.Module:
    """As torch.nn.utils.weight_norm makes: PyTorch refuses to copy the attribute."""
    layer = linear()
    return Custom(lambda self, rows: (self.layer(rows) * self.doubled.sum()).exp(), layer=layer, doubled=layer.bias * 2)


@pytest.mark.parametrize(
    "network",
    [
        Custom(lambda self, rows: self.layer(rows).exp(), layer=linear(), lock=threading.Lock()),
        with_an_attribute_that_is_no_leaf(),
        Custom(lambda self, rows: torch.fft.fft(self.layer(rows).exp()), layer=linear()),
        Custom(
            lambda self, rows: {"labels": self.layer(rows).argmax(1, keepdim=True), "logits": self.layer(rows).exp()},
            layer=linear(),
        ),
        Custom(lambda self, rows: Found(self.layer(rows).argmax(1), self.layer(rows).exp()), layer=linear()),
        Custom(lambda self, rows: self.layer(rows).squeeze(-1).exp(), layer=linear(1)),
        Custom(lambda self, rows: self.layer(rows).exp().mean(), layer=linear()),
        Custom(lambda self, rows: self.layer(rows).exp()[:0], layer=linear()),
        Custom(lambda self, rows: self.layer(rows).exp()[:, : 3 if self.training else 8], layer=linear()),
        Custom(lambda self, rows: self.layer(rows.reshape(4, 16)).exp(), layer=linear()),
    ],
    ids=[
        "an attribute that cannot be copied",
        "an attribute that is no leaf",
        "complex",
        "a dictionary",
        "a dataclass",
        "a vector",
        "a scalar",
        "empty",
        "another shape in train mode",
        "a fixed batch size",
    ],
)
def test_every_arm_runs_on_a_network_with_unusual_state_or_output(network: nn.Module) -> None:
    comparison = compared(network)
    arms = by_arm(comparison)
    assert (len(arms), comparison.left_out) == (6, ())
    assert arms["grad"].backward.works
    assert arms["grad"].retained_bytes
    assert arms["grad"].max_abs_difference == 0
    assert not arms["no_grad"].backward.works
    assert arms["no_grad"].retained_bytes == arms["inference_mode"].retained_bytes == 0


def test_a_scripted_network_is_compared() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.script(nn.Sequential(linear(), nn.Sigmoid()).eval())
    comparison = compared(network)
    # TorchScript optimizes a forward for the modes that it has seen, and may then refuse others.
    assert {left_out.arm for left_out in comparison.left_out} <= {"inference_mode"}
    assert by_arm(comparison)["grad"].backward.works
    assert by_arm(comparison)["grad"].retained_bytes == 4 * 8 * 4


def test_a_network_on_the_meta_device_is_compared_without_peak_and_difference() -> None:
    arms = by_arm(compared(linear().to("meta"), ROWS.to("meta")))
    assert arms["grad"].backward.works
    assert arms["grad"].peak_note == "PyTorch counts no peak on meta"
    assert arms["grad"].max_abs_difference is None


def test_a_network_that_refuses_hooks_is_compared_without_what_it_retains() -> None:
    def gradients(self: Any, rows: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(torch.func.grad(lambda row: self.layer(row).exp().sum()))(rows)

    comparison = compared(Custom(gradients, layer=linear()))
    grad = by_arm(comparison)["grad"]
    assert (grad.retained_bytes, grad.retained_note) == (None, "the hooks that observe it fail in its forward")
    assert said(comparison, "could not be observed")
    assert not said(comparison, "kept nothing")


def test_an_arm_that_fails_leaves_the_others() -> None:
    def not_in_inference_mode(self: Any, rows: torch.Tensor) -> torch.Tensor:
        assert not torch.is_inference_mode_enabled(), "no inference mode here"
        return self.layer(rows)

    comparison = compared(Custom(not_in_inference_mode, layer=linear()))
    assert [left_out.arm for left_out in comparison.left_out] == ["inference_mode"]
    assert "no inference mode here" in comparison.left_out[0].reason
    assert by_arm(comparison)["grad"].max_abs_difference == 0
    # The reference is not one of the arms here.
    assert len(compared(Custom(not_in_inference_mode, layer=linear()), arms=("no_grad",)).arms) == 1


def test_a_network_that_no_arm_can_run_raises_its_error() -> None:
    with pytest.raises(TypeError, match="must be Tensor, not dict"):
        compared(linear(), {"rows": ROWS})


def test_tensors_may_be_in_tuples_dictionaries_and_keywords() -> None:
    def forward(self: Any, pair: tuple[torch.Tensor, str], *, more: dict[str, torch.Tensor]) -> torch.Tensor:
        return (self.layer(pair[0]) * more["scale"]).exp()

    network = Custom(forward, layer=linear()).eval()
    comparison = compare(network, (ROWS, "first"), more={"scale": torch.rand(4, 8)}, iterations=1, sweep=(2, 6))
    assert comparison.batch_size == 4
    # The exponential keeps its output, eight numbers a row.
    assert [point.arms[0].retained_bytes for point in comparison.sweep] == [2 * 8 * 4, 6 * 8 * 4]


def test_arguments_without_a_tensor_are_refused() -> None:
    with pytest.raises(TypeError, match="needs a tensor among the arguments"):
        compared(linear(), ROWS.numpy())


def test_a_backward_pass_from_a_sparse_output_works() -> None:
    comparison = compared(Custom(lambda self, rows: self.layer(rows).exp().to_sparse(), layer=linear()))
    assert {arm: report.backward.works for arm, report in by_arm(comparison).items()} == {
        arm: arm == "grad" for arm in by_arm(comparison)
    }


@pytest.mark.parametrize("arms", [("grad", "no_grd"), "grad,no_grad", ("served",)])
def test_an_unknown_arm_is_refused_with_the_known_ones(arms: Any) -> None:
    with pytest.raises(ValueError, match=r"no arm .*; there is grad, no_grad, .*train$"):
        compared(linear(), arms=arms)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arms": 3}, "arms: a sequence is needed, such as .* not 3"),
        ({"arms": ()}, "arms: at least one is needed; there is grad"),
        ({"iterations": "12"}, "iterations: a whole number is needed, not '12'"),
        ({"sweep": 4}, r"sweep: a sequence is needed, such as \(1, 2, 4\), not 4"),
        ({"sweep": "1,2"}, "sweep: a whole number is needed, not '1'"),
        ({"sweep": (1.5,)}, "sweep: a whole number is needed, not 1.5"),
        ({"seconds": "60"}, "seconds: a number from 0 is needed, not '60'"),
        ({"seconds": float("nan")}, "seconds: a number from 0 is needed, not nan"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        compare(linear().eval(), ROWS, **options)


def test_one_arm_may_be_named_alone_and_arms_may_be_any_sequence() -> None:
    assert list(by_arm(compared(linear(), arms="grad"))) == ["grad"]
    assert list(by_arm(compared(linear(), arms=iter(["grad", "no_grad", "grad"])))) == ["grad", "no_grad"]


def test_a_function_is_no_network() -> None:
    with pytest.raises(TypeError, match=r"network: a torch.nn.Module is needed, not a method"):
        compare(linear().forward, ROWS)  # type: ignore[arg-type]


class Remembering(nn.Module):
    """An LSTM that begins with the state in which its last batch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 8)
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output, self.state = self.lstm(rows[None], self.state)
        return output[0]


def test_a_network_may_keep_state_that_has_the_size_of_its_batches() -> None:
    comparison = compared(Remembering(), sweep=(2, 8))
    assert (len(comparison.arms), comparison.left_out) == (6, ())
    assert [point.batch_size for point in comparison.sweep] == [2, 8]
    assert by_arm(comparison)["grad"].backward.works


def test_a_network_with_a_sparse_buffer_is_compared() -> None:
    network = Custom(lambda self, rows: torch.sparse.mm(self.sparse, self.layer(rows).exp()), layer=linear())
    network.register_buffer("sparse", torch.eye(4).to_sparse())
    # The exponential keeps its output.
    assert by_arm(compared(network))["grad"].retained_bytes == 4 * 8 * 4


def test_an_inference_tensor_as_buffer_fails_in_a_copy_as_in_the_network() -> None:
    network = Custom(lambda self, rows: self.layer(rows) * self.scale, layer=linear())
    with torch.inference_mode():
        network.register_buffer("scale", torch.rand(8))
    (left_out,) = compared(network).left_out
    assert left_out.arm == "grad"
    assert "Inference tensors cannot be saved for backward" in left_out.reason


def test_a_parameter_as_output_is_the_reason_why_it_requires_grad() -> None:
    comparison = compared(Custom(lambda self, _rows: self.layer.weight, layer=linear()))
    assert said(comparison, "it is a parameter, or another leaf that does")
    assert said(comparison, "With gradients on, this batch kept nothing")
    assert not said(comparison, "eval() alone")


def test_answers_count_as_memory_that_a_comparison_needs() -> None:
    """An expanded tensor takes no memory, and its difference from another takes all."""
    network = Custom(lambda self, rows: self.layer(rows).expand(2**40, -1, -1), layer=linear())
    with pytest.raises(ComparisonTooLargeError):
        compared(network)


def test_a_library_network_has_no_classes() -> None:
    assert all(report.top1_agreement is None for report in compared(linear()).arms)


def test_only_the_pass_for_the_table_hooks_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked: list[tuple[str, bool]] = []
    stage = ["timed"]

    def note(self: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        hooks = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in self.modules())  # noqa: SLF001
        hooked.append((stage[0], hooks > 0))
        return self.layer(rows).exp()

    def table(*arguments: Any, **options: Any) -> Any:
        stage[0] = "table"
        try:
            return modules(*arguments, **options)
        finally:
            stage[0] = "timed"

    modules = Measuring.modules
    monkeypatch.setattr(Measuring, "modules", table)
    assert compared(Custom(note, layer=linear()), sweep=(2,)).modules
    assert set(hooked) == {("timed", False), ("table", True)}


def test_the_peak_is_that_of_the_fast_path() -> None:
    network = nn.TransformerEncoderLayer(128, 4, batch_first=True).eval()
    rows = torch.rand(8, 64, 128)
    with torch.inference_mode(), memory.recorded_peak(torch.device("cpu")) as recording:
        network(rows)
    assert recording.peak.bytes
    arms = by_arm(compared(network, rows, arms=("grad", "inference_mode")))
    assert arms["inference_mode"].peak_bytes == pytest.approx(recording.peak.bytes, rel=0.02)


def test_a_graph_that_the_forward_dropped_is_not_counted() -> None:
    network = Custom(lambda self, rows: self.layer(rows).exp().sin().argmax(1), layer=linear())
    assert by_arm(compared(network))["grad"].retained_bytes == 0


def test_a_dropped_graph_in_a_reference_cycle_is_not_counted() -> None:
    leaf = torch.rand(100, requires_grad=True)

    def forward() -> torch.Tensor:
        cycle: list[object] = [leaf.exp()]
        cycle.append(cycle)
        return leaf.sin()

    first = saved_by(forward)
    assert saved_by(forward).without(first).retained.bytes == 0


def test_nothing_is_not_said_of_a_graph_that_another_thread_recorded() -> None:
    def forward(self: Any, rows: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: outputs.append(self.layer(rows).exp()))
        thread.start()
        thread.join()
        return outputs[0]

    comparison = compared(Custom(forward, layer=linear()), arms=("grad", "no_grad"))
    assert not said(comparison, "kept nothing")
    assert said(comparison, "Under no_grad the output requires grad all the same")
    no_grad = by_arm(comparison)["no_grad"]
    assert no_grad.retained_bytes is None
    assert "another thread" in (no_grad.retained_note or "")
    assert (no_grad.peak_bytes, comparison.largest_batch) == (None, None)


def test_runs_that_differ_in_eval_mode_too_say_nothing_about_dropout() -> None:
    # So many outputs that two masks are never equal.
    drops = Custom(lambda self, rows: F.dropout(self.layer(rows)), layer=linear(256))
    not_a_number = Custom(lambda self, rows: self.layer(rows) * float("nan"), layer=linear())
    for network in (drops, not_a_number):
        assert not said(compared(network), "two runs")


def test_only_a_network_with_dropout_is_told_about_it() -> None:
    (dropout,) = said(compared(nn.Sequential(linear(256), nn.Dropout())), "two runs")
    assert "only eval() turns off Dropout" in dropout
    functional = Custom(lambda self, rows: F.dropout(self.layer(rows), training=self.training), layer=linear(256))
    (other,) = said(compared(functional), "two runs")
    assert "only eval() makes them agree" in other


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_a_network_with_spectral_norm_is_neither_told_about_dropout_nor_changed(
    normed: Callable[[nn.Module], nn.Module],
) -> None:
    """In train mode each forward improves its estimate of the largest singular value, which changes the output."""
    network = nn.Sequential(normed(linear())).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    comparison = compared(network)
    assert not comparison.left_out
    assert not said(comparison, "Dropout")
    # Unless the estimate has converged by then.
    assert all("only eval() makes them agree" in sentence for sentence in said(comparison, "two runs"))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    network(ROWS).sum().backward()


class Caching(nn.Module):
    """Keeps what it computed in its first forward, and counts its forwards in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()
        self.cache: torch.Tensor | None = None
        self.register_buffer("forwards", torch.zeros(1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        if self.cache is None:
            self.cache = torch.ones(8)
        return self.layer(rows.mul_(0.5)) * self.cache


def test_a_network_that_caches_and_counts_is_left_as_it_was() -> None:
    network, rows = Caching(), ROWS.clone()
    comparison = compared(network, rows)
    assert not comparison.left_out
    assert network.cache is None
    assert network.forwards == 0
    assert torch.equal(rows, ROWS)
    network(rows).sum().backward()


def test_a_leaf_that_is_no_parameter_gets_no_gradient() -> None:
    scale = torch.rand(8, requires_grad=True)
    grad = by_arm(compared(Custom(lambda self, rows: self.layer(rows) * scale, layer=linear())))["grad"]
    assert grad.backward.works
    assert scale.grad is None


@pytest.fixture
def _other_profiler() -> Iterator[None]:
    with torch.profiler.profile():
        yield


@pytest.mark.usefixtures("_other_profiler")
def test_a_comparison_inside_a_running_profiler_is_refused() -> None:
    with pytest.raises(RuntimeError, match="a profiler is running"):
        compared(linear())


def test_random_states_of_python_and_numpy_are_restored() -> None:
    def forward(self: Any, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows) * random.random() * np.random.rand()  # noqa: NPY002, S311 - the global states

    python, numpy = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    compared(Custom(forward, layer=linear()))
    assert random.getstate() == python
    assert np.random.get_state()[1].tobytes() == numpy  # noqa: NPY002


def test_identical_arms_are_not_said_to_differ() -> None:
    """Frozen parameters leave grad mode nothing to record."""
    network = linear().eval().requires_grad_(False)
    comparison = compare(network, ROWS, iterations=7)
    assert said(comparison, "7 rounds do not show a difference")


def test_of_two_arms_each_is_first_in_half_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[ArmName] = []

    def seconds(_self: Measuring, arm: Arm, *_: object) -> float:
        order.append(arm.name)
        return 1.0

    monkeypatch.setattr(Measuring, "_seconds", seconds)
    names: tuple[ArmName, ...] = ("grad", "no_grad", "inference_mode")
    compare(linear().eval(), ROWS, iterations=12, arms=names)
    rounds = [order[start : start + 3] for start in range(0, 36, 3)]
    for one in names:
        for other in names:
            if one != other:
                assert sum(each.index(one) < each.index(other) for each in rounds) == 6


def test_eval_mode_alone_is_said_to_keep_the_graph() -> None:
    assert said(compared(linear()), "eval() alone does not keep autograd from recording")


def test_a_comparison_in_a_server_does_not_rewind_the_random_state_of_other_threads() -> None:
    drawn: list[float] = []

    def forward(self: Any, rows: torch.Tensor) -> torch.Tensor:
        drawn.append(random.random())  # noqa: S311 - as a request's id in another thread
        return self.layer(rows)

    subject, size = subject_with(Custom(forward, layer=linear()).eval(), (ROWS,), {})
    run_comparison(subject, ComparisonOptions(arms=("grad",), batch_size=size, iterations=1), ComparisonProgress())
    assert random.random() not in drawn  # noqa: S311


def test_every_forward_has_the_same_input_although_the_network_writes_to_it() -> None:
    comparison = compared(Custom(lambda self, rows: self.layer(rows.mul_(0.5)), layer=linear()), ROWS.clone())
    assert {report.max_abs_difference for report in comparison.arms if report.arm != "train"} == {0.0}


def test_each_arm_runs_directly_after_every_other_one() -> None:
    order: list[str] = []

    def arm(name: Any) -> Arm:
        return Arm(name=name, forward=lambda _: order.append(name), network=None)

    subject, size = subject_with(linear(), (ROWS,), {})
    names = ("grad", "no_grad", "inference_mode", "frozen")
    measuring = Measuring(subject, subject.batch(size), ComparisonProgress())
    arms = [arm(name) for name in names]
    for number in range(200):
        measuring.round(arms, "timing", number)
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert all(second == first[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True))
    assert {pair for each in rounds for pair in pairwise(each)} == set(permutations(names, 2))
