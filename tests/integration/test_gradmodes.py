"""The lens: what autograd retains is measured exactly, and nothing of the measuring stays behind."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.comparison import Comparison
from models.engine import Engine
from models.gradmodes import ComparisonAbandonedError, compare

MODES = ["grad", "no_grad", "set_grad_enabled_false", "inference_mode"]


class MadeStorages(TorchDispatchMode):
    """Notes every storage that an operation makes, weakly: what is alive later is what somebody has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.made[StorageWeakRef(leaf.untyped_storage())] = leaf.untyped_storage().nbytes()
        return result

    def live_bytes(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


def live_tensors() -> int:
    gc.collect()
    # type(), for isinstance would wake lazy objects of other libraries.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def state(engine: Engine) -> list[tuple[str, bool, str]]:
    return [
        (name, tensor.requires_grad, hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest())
        for name, tensor in engine.model.network.state_dict(keep_vars=True).items()
    ]


@pytest.fixture(scope="module")
def of_the_default(default_engine: Engine) -> Comparison:
    """The embedded default at batch 8."""
    return compare(default_engine, batch_size=8, iterations=1)


def test_only_the_grad_mode_retains(tiny_engine: Engine) -> None:
    comparison = compare(tiny_engine, batch_size=4, iterations=2)
    assert [report.mode for report in comparison.modes] == MODES
    grad, *others = comparison.modes
    assert grad.retained.bytes > 0
    assert grad.output_requires_grad
    assert all((other.retained.bytes, other.retained.tensors) == (0, 0) for other in others)
    assert not any(other.output_requires_grad for other in others)


def test_the_mode_changes_no_output(tiny_engine: Engine) -> None:
    assert [report.max_abs_difference for report in compare(tiny_engine, batch_size=4, iterations=1).modes] == [0] * 4


def test_a_comparison_says_what_was_compared(tiny_engine: Engine) -> None:
    comparison = compare(tiny_engine, batch_size=4, iterations=2)
    assert (comparison.model, comparison.device) == ("tiny", "cpu")
    assert comparison.fingerprint == tiny_engine.model.fingerprint
    assert (comparison.batch_size, comparison.iterations) == (4, 2)
    assert all(report.median_seconds > 0 for report in comparison.modes)


def test_what_is_retained_grows_with_the_batch(tiny_engine: Engine) -> None:
    small, large = (compare(tiny_engine, batch_size=size, iterations=1).modes[0].retained for size in (2, 8))
    # What does not grow is BatchNorm's saved statistics, which a model in eval mode does not have.
    assert large.bytes == 4 * small.bytes
    assert large.tensors == small.tensors


def test_the_default_model_retains_636_megabytes_at_batch_8(of_the_default: Comparison) -> None:
    retained = of_the_default.modes[0].retained
    assert retained.bytes == pytest.approx(635.9e6, rel=0.02)
    assert retained.tensors == 133


def test_storages_alive_while_the_output_is_held_say_the_same(
    default_engine: Engine, of_the_default: Comparison
) -> None:
    images = torch.rand(8, 3, 224, 224)
    with MadeStorages() as storages:
        output = default_engine.model.network(images)
    assert output.logits.requires_grad
    logits_bytes = output.logits.untyped_storage().nbytes()
    live_bytes = storages.live_bytes() - logits_bytes
    assert live_bytes == pytest.approx(of_the_default.modes[0].retained.bytes, rel=0.02)


def test_a_comparison_leaves_the_network_as_it_was(tiny_engine: Engine) -> None:
    before = state(tiny_engine)
    compare(tiny_engine, batch_size=4, iterations=1)
    assert state(tiny_engine) == before
    assert all(parameter.grad is None for parameter in tiny_engine.model.network.parameters())
    assert not any(module.training for module in tiny_engine.model.network.modules())


def test_a_comparison_leaves_no_tensor_alive(tiny_engine: Engine) -> None:
    # A ReLU's backward needs its own output: kept wrongly, the graph and the output hold one another for good.
    compare(tiny_engine, batch_size=4, iterations=1)
    before = live_tensors()
    for _ in range(3):
        compare(tiny_engine, batch_size=4, iterations=1)
    assert live_tensors() == before


def test_an_abandoned_comparison_ends_before_its_next_forward(tiny_engine: Engine) -> None:
    forwards: list[object] = []
    tiny_engine.model.network.register_forward_pre_hook(lambda *_: forwards.append(None))
    with pytest.raises(ComparisonAbandonedError):
        compare(tiny_engine, batch_size=2, iterations=50, abandoned=lambda: len(forwards) == 3)
    assert len(forwards) == 3
