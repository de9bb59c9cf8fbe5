"""What autograd retains: the hooks' count against the allocator's, on networks of every kind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from gradless import retained_bytes
from gradless.memory import prepare_profiler
from gradless.records import Retained
from gradless.retained import saved_by
from models.loading.load import LoadedModel

pytestmark = pytest.mark.usefixtures("one_core")

Case = tuple[nn.Module, torch.Tensor]


class Views(nn.Module):
    """Views of views, in-place operations on them, a buffer, and an output that is a view itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 256)
        self.second = nn.Linear(256, 768)
        self.register_buffer("scale", torch.rand(256))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        tiles = self.first(rows).view(len(rows), 16, 16).transpose(1, 2)
        mixed = tiles.reshape(len(rows), -1).relu_().mul_(2)
        query, key, value = self.second(mixed).chunk(3, dim=1)
        gated = (query * key).sigmoid_() * value * self.scale
        gated[:, :16].mul_(3)
        return (gated.exp() + 1)[:, 1:]


class Exponential(torch.autograd.Function):
    """Saves its own output, by the means that PyTorch has for it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: torch.Tensor) -> torch.Tensor:
        result = values.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        (result,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * result


class Checkpointed(nn.Module):
    """Saves the input of its second half, and recomputes the rest for the backward pass."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(64, 4096)
        self.second = nn.Sequential(nn.Linear(4096, 512), nn.GELU(), nn.Linear(512, 4))
        self.use_reentrant = use_reentrant

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        middle = self.first(rows)
        return checkpoint(self.second, middle, use_reentrant=self.use_reentrant, preserve_rng_state=False)


def held_bytes(forward: Callable[[], object]) -> int:
    """By the profiler's record of the allocator: what is allocated in a forward and still is while its result is
    held, without the result itself."""
    prepare_profiler()
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        result = forward()
    assert profiler.kineto_results is not None
    kept = sum(event.nbytes() for event in profiler.kineto_results.events() if event.name() == "[memory]")
    storages = {leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
    return int(kept - sum(storage.nbytes() for storage in storages))


def convnet() -> Case:
    return torchvision.models.resnet18().eval(), torch.rand(4, 3, 64, 64)


def training_convnet() -> Case:
    return torchvision.models.resnet18().train(), torch.rand(4, 3, 64, 64)


def vision_transformer() -> Case:
    return torchvision.models.vit_b_16(image_size=64).eval(), torch.rand(4, 3, 64, 64)


def swin_transformer() -> Case:
    return torchvision.models.swin_t().eval(), torch.rand(2, 3, 64, 64)


def views() -> Case:
    return Views(), torch.rand(64, 256)


def checkpointed() -> Case:
    return Checkpointed(use_reentrant=False), torch.rand(64, 64)


def reentrantly_checkpointed() -> Case:
    return Checkpointed(use_reentrant=True), torch.rand(64, 64)


@pytest.mark.parametrize(
    "make",
    [
        convnet,
        training_convnet,
        vision_transformer,
        swin_transformer,
        views,
        checkpointed,
        reentrantly_checkpointed,
    ],
)
def test_the_hooks_agree_with_the_allocator(make: Callable[[], Case]) -> None:
    network, images = make()
    counted = retained_bytes(lambda: network(images))
    assert counted == pytest.approx(held_bytes(lambda: network(images)), rel=0.02)
    assert counted > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
def test_without_gradients_nothing_is_retained(mode: Callable[[], torch.no_grad]) -> None:
    network, images = convnet()
    with mode():
        assert retained_bytes(lambda: network(images)) == 0


def test_the_default_model_retains_636_megabytes_at_batch_8(default_model: LoadedModel) -> None:
    images = torch.rand(8, 3, 224, 224)
    first = saved_by(lambda: default_model.network(images))
    retained = saved_by(lambda: default_model.network(images)).without(first).retained
    assert retained.bytes == pytest.approx(635.9e6, rel=0.02)
    # By address they are 133, because the empty statistics of every BatchNorm share the null address.
    assert retained.tensors == 132


def test_the_allocator_confirms_the_bytes_of_the_default_model(default_model: LoadedModel) -> None:
    images = torch.rand(8, 3, 224, 224)
    held = held_bytes(lambda: default_model.network(images))
    assert retained_bytes(lambda: default_model.network(images)) == pytest.approx(held, rel=0.02)


def test_parameters_buffers_and_the_input_are_not_counted() -> None:
    table = torch.rand(1000, 8, requires_grad=True)
    constant, rows = torch.rand(8), torch.rand(5, 8)

    def forward() -> torch.Tensor:
        return (rows * table[:5]).sin() * constant

    # The products save rows and constant, which were there; sin saves what the first product made.
    assert retained_bytes(forward) == 5 * 8 * 4


def test_an_input_created_by_the_forward_is_counted() -> None:
    weight = torch.rand(8, 8, requires_grad=True)
    assert retained_bytes(lambda: torch.ones(5, 8) @ weight) == 5 * 8 * 4


def test_views_of_one_storage_count_once() -> None:
    leaf = torch.rand(100, requires_grad=True)

    def forward() -> torch.Tensor:
        squares = leaf.exp()
        return (squares[:50] * squares[50:]).sin()

    # exp saves its output, the product two views of the same; sin saves the product.
    assert retained_bytes(forward) == (100 + 50) * 4


def test_custom_functions_and_in_place_operations_are_counted() -> None:
    leaf = torch.rand(100, requires_grad=True)
    assert retained_bytes(lambda: Exponential.apply(leaf * 2)) == 400
    assert retained_bytes(lambda: (leaf * 2).sigmoid_().neg()) == 400


def test_sparse_tensors_count_by_their_components() -> None:
    dense = torch.rand(50, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        return torch.sparse.mm(torch.eye(50).to_sparse(), dense)

    # 50 values of 4 bytes, and two indices of 8 bytes each.
    assert retained_bytes(forward) == 50 * 4 + 50 * 2 * 8


def test_a_result_that_stays_alive_is_counted() -> None:
    leaf, kept = torch.rand(100, requires_grad=True), []
    assert retained_bytes(lambda: kept.append(leaf.exp())) == 400


def test_a_compiled_forward_is_counted() -> None:
    network = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
    images = torch.rand(32, 64)
    compiled = torch.compile(network, backend="aot_eager")
    compiled(images)
    counted = retained_bytes(lambda: compiled(images))
    assert counted == pytest.approx(held_bytes(lambda: compiled(images)), rel=0.02)


def test_storages_are_attributed_to_the_running_module() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    images = torch.rand(10, 4)
    first = saved_by(lambda: network(images))
    kept = saved_by(lambda: network(images), network, modules=True).without(first)
    # The output of the ReLU, which saves it; the linear layers save what is there already.
    (relu,) = kept.by_module(network, str)
    assert (relu.module, relu.type, relu.retained_bytes, relu.retained_tensors) == ("1.0", "ReLU", 320, 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())  # noqa: SLF001


def test_attribution_to_modules_keeps_checkpointing_working() -> None:
    network, images = checkpointed()
    first = saved_by(lambda: network(images))
    kept = saved_by(lambda: network(images), network, modules=True).without(first)
    assert kept.retained == Retained(64 * 4096 * 4, 1)


def test_storages_saved_in_another_thread_are_counted() -> None:
    network, images = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.rand(10, 4)
    with ThreadPoolExecutor(1) as pool:
        outside = saved_by(lambda: pool.submit(network, images).result())
        first = saved_by(lambda: pool.submit(network, images).result(), network)
        second = saved_by(lambda: pool.submit(network, images).result(), network)
        assert not outside, "the hooks are thread-local"
        assert second.without(first).retained == Retained(320, 1)
        # None of them is left in the thread.
        assert retained_bytes(lambda: pool.submit(network, images).result()) == 0


def test_a_forward_that_fails_leaves_no_hook_behind() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(9, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        saved_by(lambda: network(torch.rand(10, 4)), network)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())  # noqa: SLF001
    leaf = torch.rand(10, requires_grad=True)
    assert leaf.exp().grad_fn is not None
    assert retained_bytes(lambda: leaf.exp()) == 40  # noqa: PLW0108 - a lambda, as in the README


def test_what_has_not_run_is_refused() -> None:
    async def forward() -> torch.Tensor:
        return torch.rand(10, requires_grad=True).exp()

    with pytest.raises(TypeError, match="the forward has not run: it returned a coroutine"):
        retained_bytes(forward)
    with pytest.raises(TypeError, match=r"takes a function, as in retained_bytes\(lambda: .* not a Tensor"):
        retained_bytes(torch.rand(10))  # type: ignore[arg-type]
