"""What a forward makes autograd keep, exactly: autograd hands each tensor that it saves for a backward pass to a hook
(`torch.autograd.graph.saved_tensors_hooks`), and the bytes of distinct storages are added up.

Parameters, buffers and the input are saved too, but were there before. They are told by running the forward twice: a
storage that both runs save was made by neither.
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
    """Bytes that autograd keeps while the result of `forward` is held: of any model, in the mode of its caller.

    `forward` is called once, and once more if anything was saved. Counted is what autograd is told to save; what a
    model keeps by itself, or packs by hooks of its own (`torch.autograd.graph.save_on_cpu`), is not. Raises what
    `forward` raises, and NotImplementedError for a saved tensor of a layout without storage (mkldnn).
    """
    first = saved_by(forward)
    return saved_by(forward).without(first).retained.bytes if first else 0


class _Found(NamedTuple):
    nbytes: int
    module: str


class Saved:
    """The distinct storages that autograd saved in one forward, each under the name of the module that was running.

    They are referenced weakly: their memory goes with the graph, and yet no other storage can be taken for them.
    """

    def __init__(self, storages: Mapping[StorageWeakRef, _Found] | None = None) -> None:
        self._storages = storages or {}

    def __bool__(self) -> bool:
        return bool(self._storages)

    def without(self, other: Saved) -> Saved:
        """What only this forward saved, which is what it made."""
        return Saved({ref: found for ref, found in self._storages.items() if ref not in other._storages})

    @property
    def retained(self) -> Retained:
        return Retained(sum(found.nbytes for found in self._storages.values()), len(self._storages))

    def by_module(self, network: nn.Module, original_name: Callable[[str], str]) -> tuple[ModuleRetained, ...]:
        """Largest first. `original_name` says what to call a module of `network`."""
        sizes: defaultdict[str, list[int]] = defaultdict(list)
        for found in self._storages.values():
            sizes[found.module].append(found.nbytes)
        by_size = sorted(sizes.items(), key=lambda item: -sum(item[1]))
        return tuple(
            ModuleRetained(original_name(name), type(network.get_submodule(name)).__name__, sum(each), len(each))
            for name, each in by_size
        )


def saved_by(forward: Callable[[], object], network: nn.Module | None = None) -> Saved:
    """What autograd saves in one call of `forward`. Its result is gone when this returns.

    With `network`, which runs in it, storages are told apart by its modules, and those saved in threads that
    `forward` hands work to are seen as well: the hooks of autograd, like its modes, are thread-local.
    """
    storages: dict[StorageWeakRef, _Found] = {}
    running = _Running()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        for storage in _storages_of(tensor):
            # BatchNorm in eval mode saves statistics of no elements.
            if storage.nbytes() == 0:
                continue
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            storages.setdefault(reference, _Found(storage.nbytes(), running.modules[-1]))
        # Detached: an operation that saves its own output would otherwise tie graph and output into a ring that
        # neither reference counts nor the garbage collector can undo.
        return tensor.detach()

    saving = saved_tensors_hooks(pack, lambda tensor: tensor)
    with ExitStack() as watched, saving:
        if network is not None:
            _watch(network, running, saving, watched)
        result = forward()
    del result
    return Saved(storages)


class _Running(threading.local):
    """The names of the modules whose forwards are running in this thread, innermost last."""

    def __init__(self) -> None:
        self.modules = [""]


def _watch(network: nn.Module, running: _Running, saving: saved_tensors_hooks, watched: ExitStack) -> None:
    """Note when each module of `network` runs, and have `saving` in whichever thread it does."""
    home = threading.get_ident()

    def watch(name: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            running.modules.append(name)
            # At the root alone: further in, it would take the place of hooks of the network's own, as checkpointing
            # has them.
            if module is network and threading.get_ident() != home:
                saving.__enter__()

        def leave(*_: object) -> None:
            running.modules.pop()
            if module is network and threading.get_ident() != home:
                saving.__exit__()

        # First in, last out: what other hooks of a module do is part of its forward.
        watched.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
        watched.callback(module.register_forward_hook(leave, always_call=True).remove)

    for name, module in network.named_modules():
        watch(name, module)


def _storages_of(tensor: torch.Tensor) -> Iterator[torch.UntypedStorage]:
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        names, _ = wrapper.__tensor_flatten__()
        parts = [getattr(wrapper, name) for name in names]
    elif tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]  # noqa: SLF001 - as they are; indices() wants them coalesced
    elif tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        yield tensor.untyped_storage()
        return
    for part in parts:
        yield from _storages_of(part)
