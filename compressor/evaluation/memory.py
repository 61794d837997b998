"""How much memory a forward takes at its peak."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compressor.forward import Forward, Inputs


def peak_memory(model: nn.Module, inputs: Inputs, *, forward: Forward) -> int:
    """Return bytes of weights and buffers, and of the activations alive at once at the worst.

    On CUDA the allocator counts. Elsewhere every tensor that an operator returns is watched until
    it is let go; what an operator allocates within itself is not seen.

    Args:
        model: The model, in eval mode.
        inputs: Inputs of B samples, on the model's device.
        forward: How it is called.
    """
    held = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
    weights = sum(held.values())
    if forward.device.type == "cuda":
        torch.cuda.synchronize(forward.device)
        torch.cuda.reset_peak_memory_stats(forward.device)
        before = torch.cuda.memory_allocated(forward.device)
        with torch.no_grad():
            forward(model, inputs)
        torch.cuda.synchronize(forward.device)
        return weights + torch.cuda.max_memory_allocated(forward.device) - before
    watched = _Allocations(set(held))
    with torch.no_grad(), watched:
        forward(model, inputs)
    return weights + watched.peak


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages of tensors that operators return, for as long as these live.

    Args:
        known: Addresses of storages that do not count.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self._known = known
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        return found

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if storage.data_ptr() in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.alive += self._sizes[key]
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._sizes.pop(key, 0)
