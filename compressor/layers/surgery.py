"""Replacing layers of a model: copies that share weights, swaps, and finding what breaks them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import nn

from compressor.errors import LayerError, did_you_mean
from compressor.layers.fused import FUSIONS, Unfused, fusion_of
from compressor.layers.kinds import LAYER_KINDS, rank_shape
from compressor.layers.lowrank import LOW_RANK_TYPES


class LayerSpec(Protocol):
    """What is needed to build a low-rank layer."""

    @property
    def kind(self) -> str:
        """Name of the layer kind."""
        ...

    @property
    def rank(self) -> int:
        """Rank of the factors."""
        ...

    @property
    def bias(self) -> bool:
        """Whether the factorized layer has a bias."""
        ...


class BuildSpec(NamedTuple):
    """A `LayerSpec` made in memory."""

    kind: str
    rank: int
    bias: bool


def structural_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the module tree whose parameters and buffers are the original's own.

    Layers of the copy can be swapped without touching ``model`` and without a second set of
    weights in memory. Writing into a tensor of the copy writes into the original: replace instead.
    """
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = tensor
    return copy.deepcopy(model, memo)


def replace_module(model: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put ``replacement`` where the module called ``name`` stands."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)


def install(model: nn.Module, specs: Mapping[str, LayerSpec]) -> None:
    """Replace the named dense layers by unfilled low-rank ones, in place.

    Args:
        model: A model whose named layers are dense; on the meta device it stays there.
        specs: Kind, rank and bias by module name.

    Raises:
        LayerError: If a name is missing, or a rank does not fit the layer's shape.
    """
    modules = dict(model.named_modules())
    tables: dict[int, Any] = {}
    for name, spec in specs.items():
        if name not in modules:
            raise LayerError(name, f"the model has no such layer.{did_you_mean(name, modules)}")
        module, kind = modules[name], LAYER_KINDS.get(spec.kind)
        if not kind.matches(module):
            raise LayerError(
                name, f"expected a dense layer of kind {spec.kind}, found {type(module).__name__}"
            )
        full = min(rank_shape(kind, module))
        if not 1 <= spec.rank <= full:
            raise LayerError(name, f"rank {spec.rank} is not between 1 and {full}")
        lowrank: Any = kind.build(module, spec.rank, bias=spec.bias)
        # An output layer and the embedding it is tied to share the thin table [V, r] too.
        known = tables.setdefault(id(module.weight), lowrank)
        if known is not lowrank and known.weight.shape == lowrank.weight.shape:
            lowrank.weight = known.weight
        replace_module(model, name, lowrank.train(module.training))


def install_skeletons(
    model: nn.Module, specs: Mapping[str, LayerSpec], *, unfused: Iterable[str] = ()
) -> None:
    """Make a dense model ready for the weights of a factorized one, in place.

    Args:
        model: The dense model; on the meta device it stays there.
        specs: Kind, rank and bias by module name.
        unfused: Fused modules to take apart first; layers of theirs are named as they then are.

    Raises:
        LayerError: As `install`, or if a module to take apart is missing or no such module.
    """
    found = fused_modules(model)
    for name in unfused:
        if name not in found:
            raise LayerError(name, f"expected a module that can be taken apart ({_known()}).")
    unfuse(model, unfused)
    install(model, specs)


def _known() -> str:
    return ", ".join(FUSIONS.names())


def unfuse(model: nn.Module, names: Iterable[str]) -> None:
    """Take the named fused modules apart, in place; they keep their storage."""
    done: dict[int, nn.Module] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        module = modules[name]
        fusion = fusion_of(module)
        assert fusion is not None, name
        if id(module) not in done:
            done[id(module)] = FUSIONS.get(fusion).unfuse(module)
        replace_module(model, name, done[id(module)])


def fuse(model: nn.Module) -> None:
    """Put back, in place, every fused module that was taken apart; its layers must be dense."""
    done: dict[int, nn.Module] = {}
    for name, module in unfused_modules(model).items():
        if id(module) not in done:
            done[id(module)] = module.fused()
        replace_module(model, name, done[id(module)])


def unfused_modules(model: nn.Module) -> dict[str, Unfused]:
    """Return what was taken apart by its name, every name of a shared one."""
    named = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, Unfused)}


def fused_modules(model: nn.Module) -> dict[str, str]:
    """Return the fusion of each fused module by its name, every name of a shared one."""
    named = model.named_modules(remove_duplicate=False)
    return {name: found for name, module in named if name and (found := fusion_of(module))}


def densify(model: nn.Module) -> None:
    """Replace every low-rank layer by the dense layer its factors multiply to, in place.

    Layers that shared a table do so again.
    """
    tables: dict[int, Any] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, LOW_RANK_TYPES):
            dense: Any = LAYER_KINDS.get(module.kind).dense(module)
            known = tables.setdefault(id(module.weight), dense)
            if known is not dense and known.weight.shape == dense.weight.shape:
                dense.weight = known.weight
            replace_module(model, name, dense.train(module.training))
    fuse(model)


def culprits(model: nn.Module, error: BaseException, names: Iterable[str]) -> list[str]:
    """Return which of the swapped layers a failed forward points at.

    The traceback is walked from its innermost frame outwards until the ``self`` of a frame is a
    module with swapped layers below it: the innermost such module is the one that could not use
    them.

    Args:
        model: The model whose forward failed.
        error: What it raised.
        names: Swapped layers.
    """
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    where = {id(module): name for name, module in model.named_modules()}
    swapped = list(names)
    for frame in reversed(frames):
        owner = where.get(id(frame.f_locals.get("self")))
        if owner is None or owner in swapped:
            continue
        prefix = f"{owner}." if owner else ""
        below = [name for name in swapped if name.startswith(prefix)]
        direct = [name for name in below if "." not in name.removeprefix(prefix)]
        if direct or below:
            return direct or below
    return []
