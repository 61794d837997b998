"""What each rank of each layer takes on this device, in milliseconds: measured layer by layer."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.evaluation.latency import time_in_turn
from compressor.forward import Forward, Inputs
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS

GRID = 6
"""Ranks of a layer that are timed, evenly spread below break-even; between them it is linear."""

ROUNDS = 7

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerSpeed:
    """How long one layer takes, in all calls of one forward.

    Args:
        dense: Milliseconds of the dense layer.
        ranks: Ranks that were timed.
        factors: Milliseconds of two thin products at each.
    """

    dense: float
    ranks: tuple[int, ...]
    factors: tuple[float, ...]

    def at_every_rank(self, full_rank: int, break_even_rank: int) -> Floats:
        """Return milliseconds at each rank 0…k, [k + 1]; above break-even the layer is dense.

        A rank counts no less than a lower one: what a higher rank can do in less time is noise.
        """
        found = np.full(full_rank + 1, self.dense)
        if self.ranks:
            rising = np.minimum.accumulate(np.array(self.factors)[::-1])[::-1]
            below = np.arange(break_even_rank + 1)
            found[: break_even_rank + 1] = np.interp(below, self.ranks, rising)
        return found


def liked_multiple(device: torch.device) -> int:
    """Return what ranks should be multiples of on a device.

    16 on CUDA, whose tensor cores take tiles of that; 8 elsewhere, a register of floats on a CPU.
    """
    return 16 if device.type == "cuda" else 8


def speed_table(
    model: nn.Module,
    layers: Mapping[str, Candidate],
    inputs: Inputs,
    *,
    forward: Forward,
    ranks: Mapping[str, tuple[int, ...]] | None = None,
    known: dict[object, LayerSpeed] | None = None,
) -> dict[str, LayerSpeed]:
    """Time every layer by itself, dense and as two factors, on the input that a forward gives it.

    Layers of the same kind, shape and input are timed once. The dense layer is timed anew beside
    each of its forms, in turn with the factors: a disturbance falls on both.

    Args:
        model: The dense model, in eval mode.
        layers: Its candidates by name.
        inputs: Inputs of B samples, on the model's device.
        forward: How the model is called.
        ranks: Ranks to time by layer; None spreads `GRID` of them below break-even.
        known: What was timed before in the same model on the same device. It is not timed again,
            and what is timed now is added.
    """
    modules = dict(model.named_modules())
    seen = _inputs_of(model, {name: modules[name] for name in layers}, inputs, forward)
    known = {} if known is None else known
    found = {}
    for name, layer in layers.items():
        given, calls = seen[name]
        wanted = grid(layer, liked_multiple(forward.device)) if ranks is None else ranks[name]
        key = (layer.kind, repr(modules[name]), tuple(given.shape), given.dtype, wanted)
        if key not in known:
            known[key] = _timed(modules[name], layer, given, wanted, forward.device)
        once = known[key]
        found[name] = LayerSpeed(
            calls * once.dense, once.ranks, tuple(calls * taken for taken in once.factors)
        )
    return found


def grid(layer: Candidate, multiple: int) -> tuple[int, ...]:
    """Return at most `GRID` ranks below break-even, multiples where there are any."""
    allowed = np.arange(multiple, layer.break_even_rank + 1, multiple)
    if not len(allowed):
        allowed = np.arange(1, layer.break_even_rank + 1)
    at = np.linspace(0, len(allowed) - 1, min(GRID, len(allowed))).round().astype(int)
    return tuple(int(rank) for rank in allowed[np.unique(at)])


def _timed(
    dense: nn.Module, layer: Candidate, given: Tensor, ranks: tuple[int, ...], device: torch.device
) -> LayerSpeed:
    kind = LAYER_KINDS.get(layer.kind)
    modules = [dense]
    for rank in ranks:
        thin = kind.build(dense, rank, bias=layer.has_bias).eval()
        with torch.no_grad():
            for parameter in thin.parameters():
                parameter.normal_(std=0.02)  # unfilled memory may hold slow denormal numbers
        modules.append(thin)
    calls = [lambda module=module: module(given) for module in modules]
    taken = time_in_turn(calls, device, rounds=ROUNDS, seconds=1.0, fewest=3)
    first, *rest = (1000 * statistics.median(times) for times in taken)
    return LayerSpeed(first, ranks, tuple(rest))


def _inputs_of(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Inputs, forward: Forward
) -> dict[str, tuple[Tensor, int]]:
    """Return the input of each module's first call, and how often it was called."""
    seen: dict[str, tuple[Tensor, int]] = {}

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            del module
            first, calls = seen.get(name, (args[0].detach(), 0))
            seen[name] = (first, calls + 1)

        return note

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
