"""The lens: the arms, the report, and the limits of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from gradless import budget, compare
from gradless.errors import ComparisonCancelledError, ComparisonTooLargeError
from gradless.records import ARMS, ArmName, ArmReport, Comparison, ComparisonOptions, Progress
from models.backends import place
from models.backends.pytorch import EagerBackend
from models.hardware import memory
from models.images.preprocessing import Transform
from models.inference.engine import Engine
from models.loading.load import LoadedModel, load
from models.networks.specs import Classifier, ModelSpec
from models.serving.lens import compare_served

pytestmark = pytest.mark.usefixtures("one_core")

SMALL = ComparisonOptions(batch_size=4, iterations=2)


def by_arm(comparison: Comparison) -> dict[ArmName, ArmReport]:
    return {report.arm: report for report in comparison.arms}


@pytest.fixture(scope="module")
def of_the_default(default_engine: Engine, one_core: None) -> Comparison:
    """The embedded default at batch 8."""
    del one_core
    return compare_served(default_engine, ComparisonOptions(batch_size=8, iterations=1, sweep=(1, 8)))


def test_arms_are_measured_in_the_order_of_the_options(tiny_engine: Engine) -> None:
    requested: tuple[ArmName, ...] = ("served", "train", "grad")
    assert [report.arm for report in compare_served(tiny_engine, SMALL).arms] == list(ARMS)
    options = replace(SMALL, arms=requested)
    assert [report.arm for report in compare_served(tiny_engine, options).arms] == list(requested)


def test_only_the_arm_grad_retains_memory(tiny_engine: Engine) -> None:
    grad, *others = compare_served(tiny_engine, SMALL).arms
    assert grad.retained_bytes > 0
    assert {(other.arm, other.retained_bytes, other.retained_tensors) for other in others} == {
        (arm, 0, 0) for arm in ARMS[1:]
    }


def test_the_default_model_has_the_known_retained_and_peak_bytes(of_the_default: Comparison) -> None:
    arms = by_arm(of_the_default)
    assert arms["grad"].retained_bytes == pytest.approx(636e6, rel=0.02)
    assert arms["grad"].peak_bytes == pytest.approx(638e6, rel=0.05)
    assert arms["inference_mode"].peak_bytes == pytest.approx(146e6, rel=0.05)
    assert all(arms[arm].retained_bytes == 0 for arm in ARMS[1:])


def test_the_output_of_each_arm_has_the_autograd_state_of_its_mode(tiny_engine: Engine) -> None:
    arms = by_arm(compare_served(tiny_engine, SMALL))
    facts = {
        arm: (
            report.output.requires_grad,
            report.output.grad_fn,
            report.output.is_inference,
            report.output.version_counter_readable,
        )
        for arm, report in arms.items()
    }
    ordinary = (False, None, False, True)
    inference = (False, None, True, False)
    assert facts == {
        "grad": (True, "AddmmBackward0", False, True),
        "no_grad": ordinary,
        "set_grad_enabled_false": ordinary,
        "inference_mode": inference,
        "frozen": ordinary,
        "train": ordinary,
        "served": inference,
    }


def test_a_backward_pass_works_only_in_grad_and_the_error_is_reported(tiny_engine: Engine) -> None:
    arms = by_arm(compare_served(tiny_engine, SMALL))
    assert {arm: report.backward.works for arm, report in arms.items()} == {arm: arm == "grad" for arm in ARMS}
    assert arms["grad"].backward.error is None
    for arm in ARMS[1:]:
        assert "does not require grad and does not have a grad_fn" in (arms[arm].backward.error or "")


def test_eval_arms_are_identical_and_served_differs_by_rounding(tiny_engine: Engine) -> None:
    arms = by_arm(compare_served(tiny_engine, SMALL))
    for arm in ("grad", "no_grad", "set_grad_enabled_false", "inference_mode", "frozen"):
        assert (arms[arm].max_abs_difference, arms[arm].top1_agreement) == (0.0, 1.0)
    assert arms["served"].max_abs_difference == pytest.approx(0, abs=1e-4)
    assert arms["train"].max_abs_difference > 0.01


def test_train_mode_updates_batchnorm_and_applies_dropout_under_no_grad(tiny_engine: Engine) -> None:
    train = by_arm(compare_served(tiny_engine, SMALL))["train"].train
    # Two BatchNorms of a mean, a variance and a count each; one Dropout.
    assert train is not None
    assert (train.batchnorm_buffers, train.batchnorm_buffers_moved, train.runs_agree) == (6, 6, False)


def test_train_mode_without_dropout_is_deterministic(default_engine: Engine) -> None:
    options = ComparisonOptions(batch_size=2, iterations=1, arms=("train",))
    train = by_arm(compare_served(default_engine, options))["train"].train
    assert train is not None
    assert train.runs_agree


def test_seconds_are_median_and_quartiles_of_the_rounds(tiny_engine: Engine) -> None:
    for report in compare_served(tiny_engine, replace(SMALL, iterations=8)).arms:
        seconds = report.seconds
        assert 0 < seconds.lower_quartile <= seconds.median <= seconds.upper_quartile


def test_a_comparison_describes_model_and_input(tiny_engine: Engine) -> None:
    comparison = compare_served(tiny_engine, SMALL)
    model = tiny_engine.model
    assert (comparison.model, comparison.architecture, comparison.fingerprint) == (
        "tiny",
        "tiny-convnet",
        model.fingerprint,
    )
    assert (comparison.device, comparison.dtype, comparison.backend) == ("cpu", "float32", "eager")
    assert (comparison.batch_size, comparison.iterations, comparison.input) == (4, 2, "random pixels, seed 0")
    assert comparison.torch == torch.__version__


def test_the_arms_run_on_the_given_image(tiny_engine: Engine) -> None:
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    tiny_engine.model.network.register_forward_pre_hook(lambda _module, given: seen.append(given[0].clone()))
    comparison = compare_served(tiny_engine, SMALL, image=image)
    assert comparison.input == "the uploaded image"
    expected = tiny_engine.model.normalize(image[None])
    assert all(torch.equal(given, expected.expand(len(given), -1, -1, -1)) for given in seen)
    assert {len(given) for given in seen} >= {1, 4}


def test_modules_are_listed_largest_first_with_their_original_names(of_the_default: Comparison) -> None:
    sizes = [module.retained_bytes for module in of_the_default.modules]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == of_the_default.arms[0].retained_bytes
    first = of_the_default.modules[0]
    assert (first.module, first.type) == ("blocks.1.0.conv_dw", "Conv2dSame")


def test_original_names_are_those_of_the_uncut_classifier(default_model: LoadedModel) -> None:
    network = default_model.network
    names = {network.original_name(name) for name, _ in network.named_modules()}
    assert {"", "conv_stem", "blocks.0.0.conv_dw", "classifier"} <= names
    assert network.original_name("head") == "classifier"


def test_modules_are_optional(tiny_engine: Engine) -> None:
    comparison = compare_served(tiny_engine, replace(SMALL, modules=False))
    assert comparison.modules == ()
    assert comparison.arms[0].retained_bytes > 0


def test_retained_bytes_grow_with_the_batch_in_a_sweep(tiny_engine: Engine) -> None:
    comparison = compare_served(tiny_engine, replace(SMALL, sweep=(8, 2, 4, 2)))
    assert [point.batch_size for point in comparison.sweep] == [2, 4, 8]
    for point in comparison.sweep:
        assert [arm.arm for arm in point.arms] == list(ARMS)
        grad, *others = point.arms
        assert grad.retained_bytes == point.batch_size * comparison.sweep[0].arms[0].retained_bytes // 2
        assert not any(other.retained_bytes for other in others)
        assert all(arm.median_seconds > 0 for arm in point.arms)
    # The batch size of the comparison itself is not measured twice.
    assert comparison.sweep[1].arms[0].median_seconds == comparison.arms[0].seconds.median


def test_the_peak_grows_in_proportion_to_the_batch(of_the_default: Comparison) -> None:
    one, eight = (point.arms[0].peak_bytes for point in of_the_default.sweep)
    assert one is not None
    assert 8 * one == pytest.approx(eight, rel=0.05)


def test_the_largest_batches_fill_the_free_memory(of_the_default: Comparison) -> None:
    largest = of_the_default.largest_batch
    assert largest is not None
    # 79.7 MB an image with gradients and 18.2 without; 0.6 MB each for the input. Two digits, rounded down.
    assert largest.with_gradients == pytest.approx(largest.memory_bytes / 80.3e6, rel=0.12)
    assert largest.without_gradients == pytest.approx(largest.memory_bytes / 18.8e6, rel=0.12)


def test_the_largest_batch_needs_arms_with_and_without_gradients(tiny_engine: Engine) -> None:
    for arms in (("grad",), ("no_grad", "served")):
        assert compare_served(tiny_engine, replace(SMALL, arms=arms)).largest_batch is None


def test_a_comparison_that_needs_too_much_memory_is_refused(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    tiny_engine.model.network.register_forward_pre_hook(lambda _module, given: sizes.append(len(given[0])))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2_000_000)
    with pytest.raises(ComparisonTooLargeError, match=r"batch size 64 .* MB .* 2 MB, three quarters") as refused:
        # Memory cannot be forced.
        compare_served(tiny_engine, replace(SMALL, sweep=(64,), force=True))
    assert refused.value.needed > refused.value.allowed == 1_500_000
    assert set(sizes) <= {1, 2}, "nothing larger was run"


@pytest.mark.parametrize(
    ("limit", "words"),
    [("MAX_SECONDS", "take about"), ("MAX_FORWARD_SECONDS", "delay requests by about")],
)
def test_a_comparison_that_would_take_too_long_is_refused(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, limit: str, words: str
) -> None:
    monkeypatch.setattr(budget, limit, 1e-9)
    with pytest.raises(ComparisonTooLargeError, match=rf"batch size 4 would {words} \d+ s"):
        compare_served(tiny_engine, SMALL)
    assert compare_served(tiny_engine, replace(SMALL, force=True)).arms


def test_a_comparison_stops_when_its_time_is_up(tiny_engine: Engine) -> None:
    comparison = compare_served(tiny_engine, replace(SMALL, iterations=50, sweep=(1, 2, 8), seconds=0.0))
    assert comparison.iterations == 1
    # The first size of a sweep is always run: how long it takes is not known before.
    assert [point.batch_size for point in comparison.sweep] == [1]
    assert "Time was up after 1 round of 50." in comparison.sentences
    assert "Time was up before batch sizes 2, 8 of the sweep." in comparison.sentences


def test_progress_counts_every_forward_and_names_its_stage(tiny_engine: Engine) -> None:
    received: list[Progress] = []
    compare_served(tiny_engine, replace(SMALL, sweep=(2, 8)), on_progress=received.append)
    assert [progress.done for progress in received] == list(range(len(received)))
    assert received[-1].total == len(received)
    assert {progress.stage for progress in received} == {"warming up", "timing", "memory", "modules", "sweep"}
    assert (received[0].stage, received[-1].stage) == ("warming up", "sweep")
    assert all(progress.done < progress.total for progress in received)


def test_a_cancelled_comparison_ends_before_its_next_forward(tiny_engine: Engine) -> None:
    forwards: list[object] = []
    tiny_engine.model.network.register_forward_pre_hook(lambda *_: forwards.append(None))
    with pytest.raises(ComparisonCancelledError):
        compare_served(
            tiny_engine, ComparisonOptions(batch_size=2, iterations=50), cancelled=lambda: len(forwards) >= 30
        )
    # The last step may also run a backward pass, on a copy with the same hook.
    assert 30 <= len(forwards) <= 31


def test_an_arm_that_fails_is_left_out_with_its_error(
    engine_for: Callable[[LoadedModel], Engine],
) -> None:
    def build() -> Classifier:
        # One value a channel for one image: in train mode BatchNorm refuses it.
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 10))
        transform = Transform(36, 32, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return Classifier(module, transform, tuple(map(str, range(10))))

    engine = engine_for(load(ModelSpec("pooled", "pooled", build), place("cpu", "fp32", "eager")))
    comparison = compare_served(engine, replace(SMALL, batch_size=1))
    assert [report.arm for report in comparison.arms] == [arm for arm in ARMS if arm != "train"]
    (left_out,) = comparison.left_out
    assert left_out.arm == "train"
    assert "Expected more than 1 value per channel" in left_out.reason
    assert compare_served(engine, replace(SMALL, batch_size=2)).left_out == ()
    swept = compare_served(engine, replace(SMALL, batch_size=2, sweep=(1, 2, 4)))
    assert [(point.batch_size, len(point.arms)) for point in swept.sweep] == [(2, len(ARMS)), (4, len(ARMS))]
    assert any(
        sentence.startswith("Batch size 1 of the sweep could not be run: ValueError: Expected more than 1 value")
        for sentence in swept.sentences
    )
    assert not any("Time was up" in sentence for sentence in swept.sentences)
    alone = compare_served(engine, replace(SMALL, batch_size=1, arms=("train",), sweep=(1,)))
    assert (alone.arms, alone.modules, alone.largest_batch) == ((), (), None)
    assert alone.sentences[0].startswith("The arm train could not be run: ValueError: Expected more than 1 value")


def test_served_splits_batches_larger_than_its_maximum(tiny_engine: Engine) -> None:
    sizes: list[int] = []
    assert tiny_engine.served_network is not None
    tiny_engine.served_network.register_forward_pre_hook(lambda _module, given: sizes.append(len(given[0])))
    served = by_arm(compare_served(tiny_engine, ComparisonOptions(batch_size=20, iterations=1)))["served"]
    assert max(sizes) <= 8
    assert served.output.is_inference
    assert served.max_abs_difference == pytest.approx(0, abs=1e-4)


def test_a_served_forward_without_inference_mode_is_detected(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(True))  # noqa: ARG005
    # Without the mode that it enters in its own threads.
    monkeypatch.setattr(EagerBackend, "_forward", EagerBackend._forward.__wrapped__)  # type: ignore[attr-defined]  # noqa: SLF001
    served = by_arm(compare_served(tiny_engine, replace(SMALL, arms=("served",))))["served"]
    assert served.retained_bytes > 0
    assert served.backward.works
    assert tiny_engine.served_network is not None
    assert all(parameter.grad is None for parameter in tiny_engine.served_network.parameters())


def test_any_network_can_be_compared() -> None:
    network, images = torchvision.models.shufflenet_v2_x0_5().eval(), torch.rand(4, 3, 64, 64)
    comparison = compare(network, images, iterations=1, sweep=(2, 6))
    arms = by_arm(comparison)
    assert list(arms) == [arm for arm in ARMS if arm != "served"]
    assert (comparison.model, comparison.batch_size, comparison.backend) == ("ShuffleNetV2", 4, "none")
    assert arms["grad"].retained_bytes > 0
    assert [point.batch_size for point in comparison.sweep] == [2, 6]
    assert comparison.modules[0].module in dict(network.named_modules())


def test_the_input_may_be_an_inference_tensor() -> None:
    with torch.inference_mode():
        rows = torch.rand(4, 8)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    assert by_arm(compare(network, rows, iterations=1))["grad"].retained_bytes == 4 * 8 * 4


def test_a_network_in_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        compare(nn.Sequential(nn.Linear(4, 2), nn.Dropout()).train(), torch.rand(2, 4))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"sweep": (1, 0)}, {"images": torch.rand(0, 4)}])
def test_batch_sizes_and_rounds_below_one_are_refused(wrong: dict[str, Any]) -> None:
    network = nn.Linear(4, 2).eval()
    with pytest.raises(ValueError, match="at least 1"):
        compare(network, wrong.pop("images", torch.rand(2, 4)), **wrong)


def test_the_difference_of_logits_that_are_not_finite_is_unknown() -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.layer(rows) * math.inf

    comparison = compare(Overflow().eval(), torch.rand(2, 4), iterations=1)
    assert {report.max_abs_difference for report in comparison.arms} == {None}
