"""What can be factorized: the interface of a layer kind, and the registry of kinds."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from compressor.registry import Registry


class LayerKind(Protocol):
    """How one type of module is seen as a matrix W [m, n] acting on rows z [n]. One file each.

    Every method takes the module itself; a kind has no state.
    """

    name: str
    lookup: bool
    """Whether inputs are indices, and rows one-hot: far too long to be multiplied out."""

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is of this kind and still dense."""
        ...

    def refusal(self, module: nn.Module) -> str | None:
        """Return why this module of the kind cannot be factorized, or None."""
        ...

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (m, n)."""
        ...

    def matrix(self, module: nn.Module) -> Tensor:
        """Return the weights as the matrix W [m, n] (a view or a copy)."""
        ...

    def reached(self, module: nn.Module) -> Tensor | None:
        """Return which of the rows [samples·P] the layer's last call had, [k]; None: all.

        The others stand in `rows` and `all_rows` as zeros.
        """
        ...

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return what W acts on, [samples, P, n], or None if rows do not belong to samples.

        Args:
            module: The layer.
            inputs: The layer's input as its forward gets it.
            samples: Number of samples B in the batch.
        """
        ...

    def all_rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor:
        """Return what W acts on at every output position, [samples, P', n]."""
        ...

    def output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return the outputs as [samples, P, m], at the positions of `rows`."""
        ...

    def all_output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return the outputs, or their gradients, as [samples, P', m], at every position."""
        ...

    def sharing(self, module: nn.Module) -> Hashable:
        """Return a key: two layers called on one tensor see the same rows if their keys agree."""
        ...

    def build(self, module: nn.Module, rank: int, *, bias: bool) -> nn.Module:
        """Return the low-rank module that replaces ``module``, not filled yet."""
        ...

    def fill(self, lowrank: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write the factors up [m, r], down [r, n] and the bias [m] into a built module."""
        ...

    def factors(self, lowrank: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the factors (up [m, r], down [r, n]) of a filled module."""
        ...

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return the dense layer whose matrix is the product of a filled module's factors."""
        ...


@runtime_checkable
class FoldingKind(LayerKind, Protocol):
    """A kind whose rank is that of W folded into another matrix: another form of a layer.

    A kind of the module's own matches it too, and is registered before.
    """

    def folded(self, module: nn.Module) -> tuple[int, int]:
        """Return the shape of W [m, C·k] folded to [m·k, C]: column (c, b) moves to row (m, b)."""
        ...

    def inner_rows(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> float:
        """Return how many rows the first factor makes for each row of the output."""
        ...


LAYER_KINDS: Registry[LayerKind] = Registry(
    "layer kind",
    group="layer_kinds",
    modules=(
        "compressor.layers.linear",
        "compressor.layers.conv2d",
        "compressor.layers.conv2d_spatial",
        "compressor.layers.conv1d",
        "compressor.layers.convolution1d",
        "compressor.layers.embedding",
        "compressor.layers.expert_linear",
    ),
)


def kind_of(module: nn.Module) -> LayerKind | None:
    """Return the kind that ``module`` belongs to, or None."""
    return next((kind for _, kind in LAYER_KINDS.items() if kind.matches(module)), None)


def folding_kinds(module: nn.Module) -> list[FoldingKind]:
    """Return the kinds of the other forms that ``module`` can take."""
    return [
        kind
        for _, kind in LAYER_KINDS.items()
        if isinstance(kind, FoldingKind) and kind.matches(module) and not kind.refusal(module)
    ]


def rank_shape(kind: LayerKind, module: nn.Module) -> tuple[int, int]:
    """Return the shape of the matrix whose rank is lowered: W's, where it is not folded."""
    return kind.folded(module) if isinstance(kind, FoldingKind) else kind.shape(module)


def computed_weight(module: nn.Module) -> str | None:
    """Return a reason where ``module`` computes more than its weight and bias say, or None.

    Parametrizations compute the weight at each access, the older weight_norm and spectral_norm at
    each call. A hook may change inputs or outputs, and would be lost with the module.
    """
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is parametrized: it is computed anew from other tensors"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it carries a forward hook, which would be lost"
    if "forward" in vars(module):
        return "its forward was replaced on the object, which would be lost"
    return None


def product(up: Tensor, down: Tensor) -> Tensor:
    """Return up [m, r] times down [r, n], computed in float64 where the device has it."""
    if up.device.type == "mps":
        return up @ down
    return (up.double() @ down.double()).to(up.dtype)


def write_dense(dense: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Write weight and bias into a dense layer of the same shapes, and return it."""
    with torch.no_grad():
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                parameter = getattr(dense, name)
                parameter.copy_(value.reshape(parameter.shape))
    return dense


def sample_rows(tensor: Tensor, samples: int) -> Tensor | None:
    """Return [L, ..., n] as [samples, P, n], or None where L is no multiple of ``samples``.

    A leading dimension that is a multiple holds several parts of each sample, the samples
    outermost (windows of a Swin transformer).
    """
    if tensor.is_nested or tensor.ndim < 2 or tensor.shape[0] % samples:
        return None
    return tensor.reshape(samples, -1, tensor.shape[-1])
