"""Modules that hold several matrices in one, and what they become so that each is a layer.

`nn.MultiheadAttention` computes three projections from one parameter, the experts of a mixture lie
in one 3-D parameter, a grouped convolution is a stack of small ones. None of them calls a layer
that could be measured or swapped. A fusion replaces such a module by an `Unfused` one that computes
the same from layers of its own, on the same storage, and that can be fused again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from compressor.registry import Registry


class Unfused(nn.Module):
    """A module whose matrices are layers of their own.

    Args:
        fused: The module it replaces.
        without: Children of the fused module that are layers here.
    """

    def __init__(self, fused: nn.Module, *, without: Iterable[str] = ()) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: it holds no tensors, and is never called.
        self._shell = (_hollow(fused, without),)
        self.training = fused.training

    def fused(self) -> nn.Module:
        """Return the original module with the matrices of the layers, which must be dense."""
        raise NotImplementedError

    def _filled(
        self, parameters: Mapping[str, Tensor | None], modules: Mapping[str, nn.Module]
    ) -> nn.Module:
        """Return the original module with these parameters and children."""
        (shell,) = self._shell
        module = copy.copy(shell)
        module.__dict__["_parameters"] = {
            name: None if tensor is None else nn.Parameter(tensor.detach())
            for name, tensor in parameters.items()
        }
        module.__dict__["_modules"] = {**shell._modules, **modules}
        return module.train(self.training)


class Fusion(Protocol):
    """One type of module that holds several matrices. One file each."""

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is of this type, and of a form that can be taken apart."""
        ...

    def unfuse(self, module: nn.Module) -> Unfused:
        """Return what computes the same from layers of its own, on the same storage."""
        ...


FUSIONS: Registry[Fusion] = Registry(
    "fusion",
    group="fusions",
    modules=(
        "compressor.layers.attention",
        "compressor.layers.experts",
        "compressor.layers.grouped",
    ),
)


def fusion_of(module: nn.Module) -> str | None:
    """Return the name of the fusion that ``module`` is of, or None."""
    return next((name for name, fusion in FUSIONS.items() if fusion.matches(module)), None)


def linear_on(weight: Tensor, bias: Tensor | None, like: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """Return a linear layer that computes with these very tensors, [m, n] and [m]."""
    rows, columns = weight.shape
    layer = like(columns, rows, bias=bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer


def stacked(tensors: Iterable[Tensor]) -> Tensor:
    """Return the tensors along a new first axis."""
    return torch.stack([tensor.detach() for tensor in tensors])


def _hollow(module: nn.Module, without: Iterable[str]) -> nn.Module:
    """Return a shallow copy without parameters, and without some of its children."""
    shell = copy.copy(module)
    shell.__dict__["_parameters"] = {}
    shell.__dict__["_modules"] = {
        name: child for name, child in module._modules.items() if name not in set(without)
    }
    return shell
