"""Measure exactly what a forward makes autograd keep.

Autograd passes each tensor that it saves for a backward pass to a hook (`torch.autograd.graph.saved_tensors_hooks`).
The result is the sum of the bytes of distinct storages. Parameters, buffers and the input are saved too, but existed
before. They are recognized by running the forward twice: neither run created a storage that both save.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradless.records import ModuleRetained, Retained


def retained_bytes(forward: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps while the result of `forward` is held, in the current autograd mode.

    `forward` is called once, and again if it saved anything. Tensors that a model itself keeps are not counted, nor
    those that its own hooks pack (`torch.autograd.graph.save_on_cpu`). Raises what `forward` raises, and
    NotImplementedError for a saved tensor of a layout without storage (mkldnn).
    """
    first = saved_by(forward)
    return saved_by(forward).without(first).retained.bytes if first else 0


class _SavedStorage(NamedTuple):
    nbytes: int
    module: str


class Saved:
    """The distinct storages that autograd saved in one forward, each with the name of the module that was running.

    Weak references do not keep the memory alive, and cannot be confused with a later storage at the same address.
    """

    def __init__(self, storages: Mapping[StorageWeakRef, _SavedStorage] | None = None) -> None:
        self._storages = storages or {}

    def __bool__(self) -> bool:
        return bool(self._storages)

    def without(self, other: Saved) -> Saved:
        """Return the storages that `other` did not save: those that this forward created."""
        return Saved({ref: storage for ref, storage in self._storages.items() if ref not in other._storages})

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


def saved_by(forward: Callable[[], object], network: nn.Module | None = None) -> Saved:
    """Return what autograd saves in one call of `forward`, whose result is discarded.

    With `network`, which `forward` runs, storages are attributed to its modules. Storages saved in threads that
    `forward` starts are included as well, although autograd's hooks are thread-local.
    """
    storages: dict[StorageWeakRef, _SavedStorage] = {}
    running = _Running()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        for storage in _storages_of(tensor):
            # BatchNorm in eval mode saves statistics of no elements.
            if storage.nbytes() == 0:
                continue
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            storages.setdefault(reference, _SavedStorage(storage.nbytes(), running.modules[-1]))
        # Detached: an operation that saves its own output would otherwise create a reference cycle of graph and
        # output, which the garbage collector cannot break.
        return tensor.detach()

    saving = saved_tensors_hooks(pack, lambda tensor: tensor)
    with ExitStack() as hooks, saving:
        if network is not None:
            _watch(network, running, saving, hooks)
        result = forward()
    del result
    return Saved(storages)


class _Running(threading.local):
    """Names of the modules whose forwards are running in this thread, innermost last."""

    def __init__(self) -> None:
        self.modules = [""]


def _watch(network: nn.Module, running: _Running, saving: saved_tensors_hooks, hooks: ExitStack) -> None:
    """Record when each module of `network` runs, and enter `saving` in the thread that runs the network."""
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

    for name, module in network.named_modules():
        watch(name, module)


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
