"""Which layers write into a residual stream, and where it is seen before: found by running once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BEFORE = 64
"""Calls before a layer's that are looked through for what is added to its output."""

AFTER = 8
"""Calls after it that are looked through for the sum."""

TOLERANCE = 1e-4
"""Largest rounding error of a sum, over its largest value."""


@dataclass(frozen=True)
class _Entered:
    """A module that was called, and its first input."""

    name: str
    rows: Tensor


def residual_sources(
    model: nn.Module, names: Collection[str], run: Callable[[], object]
) -> dict[str, str]:
    """Return, for each layer whose output is added to a residual stream, where that is seen.

    A layer writes into the stream where what a later module is given, less the layer's output, is
    what an earlier module was given: h + L(z) and h. That holds of blocks that normalize before
    their layers and of those that do so after, whatever the architecture calls them.

    Args:
        model: Any module.
        names: Layers to ask for.
        run: Calls its forward on a few samples.

    Returns:
        The name of a module whose first input is the stream before the layer's output is added.
        Layers of which none was found are left out, and those that are called more than once.
    """
    entered: list[_Entered] = []
    outputs: dict[str, tuple[int, Tensor] | None] = {}

    def watch(name: str, module: nn.Module) -> Iterator[Any]:
        def pre(module: nn.Module, args: Any, kwargs: Any) -> None:
            del module
            found = first_rows(args, kwargs)
            if found is not None:
                entered.append(_Entered(name, found))

        def post(module: nn.Module, args: Any, output: Tensor) -> None:
            del module, args
            outputs[name] = None if name in outputs else (len(entered), output)

        yield module.register_forward_pre_hook(pre, with_kwargs=True)
        if name in names:
            yield module.register_forward_hook(post)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            for handle in watch(name, module):
                hooks.callback(handle.remove)
        run()
    found = {name: _source(entered, *where) for name, where in outputs.items() if where is not None}
    return {name: source for name, source in found.items() if source is not None}


def first_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor of real numbers that a module is called with."""
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    first = next(tensors, None)
    return first if first is not None and first.is_floating_point() else None


def _source(entered: list[_Entered], position: int, output: Tensor) -> str | None:
    """Return the module that was last given what is added to a layer's output.

    Args:
        entered: All modules in the order they were called in.
        position: How many were called before the layer gave its output.
        output: The layer's output.
    """
    for later in entered[position : position + AFTER]:
        total = later.rows
        if total.shape != output.shape or torch.equal(total, output):
            continue
        before = total - output
        limit = TOLERANCE * float(total.abs().max())
        seen: set[str] = set()
        for earlier in reversed(entered[max(position - BEFORE, 0) : position]):
            if earlier.name in seen:
                continue  # called again since
            seen.add(earlier.name)
            rows = earlier.rows
            if rows.shape == before.shape and float((rows - before).abs().max()) <= limit:
                return earlier.name
        return None
    return None
