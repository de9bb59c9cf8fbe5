"""Measure exactly what a forward makes autograd keep.

Autograd passes each tensor that it saves for a backward pass to a hook (`torch.autograd.graph.saved_tensors_hooks`).
The result is the sum of the bytes of distinct storages that the graph still holds when the forward has returned.
Parameters, buffers and the input are saved too, but existed before. They are recognized by running the forward twice:
neither run created a storage that both save.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradless.memory import no_garbage_collection
from gradless.records import ModuleRetained, Retained


def retained_bytes(forward: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps while the result of `forward` is held, in the current autograd mode.

    `forward` is called once, and again if it saved anything. Tensors that a model itself keeps are not counted, nor
    those that its own hooks pack (`torch.autograd.graph.save_on_cpu`). Raises what `forward` raises, TypeError if it
    only returns a coroutine or generator, and NotImplementedError for a saved tensor of a layout without storage
    (mkldnn).
    """
    if not callable(forward):
        raise TypeError(
            f"retained_bytes() takes a function, as in retained_bytes(lambda: model(images)), not {_kind(forward)}"
        )
    first = saved_by(forward)
    return saved_by(forward).without(first).retained.bytes if first.held else 0


class _SavedStorage(NamedTuple):
    """Size of a storage that was saved, whether the graph still held it, and the module that ran."""

    nbytes: int
    held: bool
    module: str


class Saved:
    """The distinct storages that autograd saved in one forward.

    Weak references do not keep the memory alive, and cannot be confused with a later storage at the same address.
    """

    def __init__(self, storages: Mapping[StorageWeakRef, _SavedStorage] | None = None) -> None:
        self._storages = storages or {}

    def __bool__(self) -> bool:
        return bool(self._storages)

    @property
    def held(self) -> bool:
        """True if the graph held any of them when the forward had returned."""
        return any(storage.held for storage in self._storages.values())

    def without(self, other: Saved) -> Saved:
        """Return the storages that are held and that `other` did not save: those that this forward created."""
        return Saved({ref: each for ref, each in self._storages.items() if each.held and ref not in other._storages})

    @property
    def retained(self) -> Retained:
        return Retained(sum(storage.nbytes for storage in self._storages.values()), len(self._storages))

    def by_module(self, network: nn.Module, original_name: Callable[[str], str]) -> tuple[ModuleRetained, ...]:
        """Return bytes and storages per module, largest first. `original_name` gives the names to report."""
        sizes: defaultdict[str, list[int]] = defaultdict(list)
        for storage in self._storages.values():
            sizes[storage.module].append(storage.nbytes)
        by_size = sorted(sizes.items(), key=lambda item: -sum(item[1]))
        return tuple(
            ModuleRetained(original_name(name), type(network.get_submodule(name)).__name__, sum(each), len(each))
            for name, each in by_size
        )


class _Packed:
    """What the graph holds instead of a saved tensor; it dies with the node that saved it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        # Detached: an operation that saves its own output would otherwise create a reference cycle of graph and
        # output, which the garbage collector cannot break.
        self.tensor = tensor.detach()


def saved_by(forward: Callable[[], object], network: nn.Module | None = None, *, modules: bool = False) -> Saved:
    """Return what autograd saves in one call of `forward`, whose result is discarded.

    With `network`, which `forward` runs, storages are included that it saves in another thread, although autograd's
    hooks are thread-local. `modules` attributes storages to its modules; their hooks may change which kernels run.
    """
    saved: list[tuple[weakref.ref[_Packed], StorageWeakRef, int, str]] = []
    running = _Running()

    def pack(tensor: torch.Tensor) -> _Packed:
        packed = _Packed(tensor)
        for storage in _storages_of(tensor):
            # BatchNorm in eval mode saves statistics of no elements.
            if storage.nbytes():
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                saved.append((weakref.ref(packed), reference, storage.nbytes(), running.modules[-1]))
        return packed

    saving = saved_tensors_hooks(pack, lambda packed: packed.tensor)
    with no_garbage_collection():
        with ExitStack() as hooks, saving:
            if network is not None:
                _watch(network, running, saving, hooks, modules=modules)
            result = forward()
        if isinstance(result, Coroutine | Generator):
            result.close()
            raise TypeError(f"the forward has not run: it returned {_kind(result)}")
        # A graph that the forward dropped may be part of a reference cycle, which is still in the youngest generation.
        gc.collect(0)
    storages: dict[StorageWeakRef, _SavedStorage] = {}
    for packed, reference, nbytes, module in saved:
        if reference not in storages or not storages[reference].held:
            storages[reference] = _SavedStorage(nbytes, packed() is not None, module)
    del result
    return Saved(storages)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


class _Running(threading.local):
    """Names of the modules whose forwards are running in this thread, innermost last."""

    def __init__(self) -> None:
        self.modules = [""]


def _watch(
    network: nn.Module, running: _Running, saving: saved_tensors_hooks, hooks: ExitStack, *, modules: bool
) -> None:
    """Enter `saving` in the thread that runs the network, and with `modules` record when each of them runs."""
    starting_thread = threading.get_ident()

    def watch(name: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            running.modules.append(name)
            # Only at the root: in an inner module it would replace the network's own hooks, as of checkpointing.
            if module is network and threading.get_ident() != starting_thread:
                saving.__enter__()

        def leave(*_: object) -> None:
            running.modules.pop()
            if module is network and threading.get_ident() != starting_thread:
                saving.__exit__()

        # Enter before, and leave after, the module's other hooks: they are part of its forward.
        hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
        hooks.callback(module.register_forward_hook(leave, always_call=True).remove)

    for name, module in network.named_modules() if modules else [("", network)]:
        watch(name, module)


def saves_tensors(outputs: list[torch.Tensor]) -> bool:
    """Return True if a node of the outputs' graph holds a saved tensor."""
    return any(
        getattr(node, name) for node in graph_of(outputs) for name in dir(node) if name.startswith("_raw_saved_")
    )


def graph_of(outputs: list[torch.Tensor]) -> Iterator[Any]:
    """Yield each node of the outputs' graph once."""
    pending: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen: set[Any] = set(pending)
    while pending:
        node = pending.pop()
        yield node
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        pending += new


def bytes_of(tensor: torch.Tensor) -> int:
    """Return the bytes of the tensor's storages, which unlike `nbytes` every layout with storages has."""
    return sum(storage.nbytes() for storage in _storages_of(tensor))


def _storages_of(tensor: torch.Tensor) -> Iterator[torch.UntypedStorage]:
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        names, _ = wrapper.__tensor_flatten__()
        parts = [getattr(wrapper, name) for name in names]
    elif tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]  # noqa: SLF001 - as they are; indices() requires coalesced ones
    elif tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        yield tensor.untyped_storage()
        return
    for part in parts:
        yield from _storages_of(part)
