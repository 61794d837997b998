"""A model on the meta device whose parts are read while they run, and let go afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compressor.collapse.chain import Call, Chain
from compressor.errors import ModelError
from compressor.streaming.units import unit_of

Read = Callable[[str], Mapping[str, Tensor]]
"""Returns the tensors of a unit in float32, by their names in the model."""


class Reading:
    """Reads the weights of one part of a model from disk while it is needed.

    What makes the first block's input is not there while blocks run, and the model's own forward
    runs it all the same, for the masks and positions that blocks take: it then gives zeros of the
    right shape.

    Args:
        model: The model on the meta device; its tensors are put in place and taken out again.
        chain: Its blocks.
        call: Runs its whole forward on a small batch of shapes.
        units: Names of the units that can be read.
        read: Reads one.

    Raises:
        ModelError: If weights lie beside the blocks, in the module that holds them.
    """

    def __init__(
        self, model: nn.Module, chain: Chain, call: Call, *, units: Iterable[str], read: Read
    ) -> None:
        self._chain, self._read = chain, read
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._aliases: dict[int, list[tuple[nn.Module, str]]] = {}
        self._unit: dict[int, str] = {}
        known = set(units)
        for name, module in self._modules.items():
            for child, tensor in _own(module):
                self._aliases.setdefault(id(tensor), []).append((module, child))
                unit = _known(unit_of(model, f"{name}.{child}" if name else child), known)
                if unit is not None:
                    self._unit.setdefault(id(tensor), unit)
        self._first, self._last = self._traced(call)
        for module in self._first:
            _zeros_while_absent(module)

    @contextlib.contextmanager
    def before(self) -> Iterator[None]:
        """Have what makes the first block's input."""
        with self._holding(self._first):
            yield

    @contextlib.contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Have one block."""
        inside = list(self._chain.blocks[index].modules())
        with self._holding(inside):
            yield

    @contextlib.contextmanager
    def after(self) -> Iterator[None]:
        """Have what takes the last block's output: a norm, the head."""
        with self._holding(self._last):
            yield

    @contextlib.contextmanager
    def _holding(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        needed = dict.fromkeys(
            self._unit[id(tensor)]
            for module in modules
            for _, tensor in _own(module)
            if id(tensor) in self._unit
        )
        taken: list[tuple[nn.Module, str, Tensor]] = []
        try:
            for unit in needed:
                for name, tensor in self._read(unit).items():
                    self._place(name, tensor, taken)
            yield
        finally:
            for module, child, tensor in taken:
                _set(module, child, tensor)

    def _place(self, name: str, tensor: Tensor, taken: list[tuple[nn.Module, str, Tensor]]) -> None:
        """Put a tensor wherever the model has it, and note what was there."""
        owner, _, child = name.rpartition(".")
        own = dict(_own(self._modules[owner]))[child]
        made = (
            nn.Parameter(tensor, requires_grad=False) if isinstance(own, nn.Parameter) else tensor
        )
        for module, other in self._aliases[id(own)]:
            taken.append((module, other, own))
            _set(module, other, made)

    def _traced(self, call: Call) -> tuple[list[nn.Module], list[nn.Module]]:
        """Return the modules with tensors of their own that run before the blocks, and after."""
        inside = {id(module) for block in self._chain.blocks for module in block.modules()}
        first: dict[nn.Module, None] = {}
        last: dict[nn.Module, None] = {}
        reached = 0

        def pre(module: nn.Module, args: object) -> None:
            nonlocal reached
            del args
            if module is self._chain.blocks[0]:
                reached = 1
            elif id(module) not in inside and reached != 1:
                (last if reached else first)[module] = None

        def post(module: nn.Module, args: object, output: object) -> None:
            nonlocal reached
            del args, output
            if module is self._chain.blocks[-1]:
                reached = 2

        ends = (self._chain.blocks[0], self._chain.blocks[-1])
        handles = []
        for name, module in self._modules.items():
            if next(_own(module), None) is None and module not in ends:
                continue
            if id(module) not in inside and not inside.isdisjoint(map(id, module.modules())):
                raise ModelError(
                    f"{name or 'The model'} holds weights of its own beside the blocks in it, so "
                    "that its blocks cannot be run without it. Leave out --stream."
                )
            handles.append(module.register_forward_pre_hook(pre))
            handles.append(module.register_forward_hook(post))
        try:
            with torch.no_grad():
                call()
        finally:
            for handle in handles:
                handle.remove()
        return list(first), list(last)


def _zeros_while_absent(module: nn.Module) -> None:
    """Have a module give zeros of the shape that it would give, while its weights are not there."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not any(tensor.is_meta for _, tensor in _own(module)):
            return own(*args, **kwargs)
        with torch.no_grad(), torch.device("meta"):
            made = own(*tree_map(_shape, args), **tree_map(_shape, kwargs))
        if any(_is_shape(value) for value in tree_leaves((args, kwargs))):
            return made  # it lies in another one that is absent, a factorized layer
        return tree_map(_zeros, made)

    module.forward = forward


def _known(unit: str, known: Container[str]) -> str | None:
    """Return the innermost unit that a module lies in."""
    while unit and unit not in known:  # the factors of a layer that is a unit lie below it
        unit = unit.rpartition(".")[0]
    return unit or None


def _is_shape(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _shape(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value, device="cpu") if isinstance(value, Tensor) else value


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and persistent buffers of a module itself."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module._parameters[name] = tensor
    else:
        module._buffers[name] = tensor
