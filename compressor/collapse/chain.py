"""Blocks of a model that run one after the other, each of them runnable alone.

What a block takes besides the hidden state (masks, rotary embeddings) is made by the model's own
forward, in which all other blocks are passed over: no architecture has to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from compressor.errors import ModelError

Call: TypeAlias = Callable[[], object]
"""Runs the model's forward on one batch."""


@dataclass(frozen=True)
class Chain:
    """A model's blocks in the order of their calls; each maps a hidden state to the next.

    Args:
        names: Module names.
        blocks: The modules.
        widths: Length of the tuple that each block returns; 0 where it returns the tensor itself.
    """

    names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    widths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    def position(self, name: str) -> int | None:
        """Return the number of the block that a module lies in, or None if it lies in none."""
        for index, block in enumerate(self.names):
            if name == block or name.startswith(f"{block}."):
                return index
        return None

    def enter(self, call: Call) -> Tensor:
        """Return the first block's input; nothing after that runs."""
        with _given(self.blocks[0], None, stop_before=True) as seen:
            _run(call)
        return _one(seen)

    def run(self, call: Call, index: int, hidden: Tensor) -> Tensor:
        """Return the output of block ``index`` on ``hidden``; nothing after that runs."""
        with self._passed_over(range(index), None), _given(self.blocks[index], hidden) as seen:
            _run(call)
        return _one(seen)

    def run_to_the_end(self, call: Call) -> None:
        """Run the forward up to the last block's output."""

        def stop(*_: object) -> None:
            raise _ReachedError

        handle = self.blocks[-1].register_forward_hook(stop)
        try:
            _run(call)
        finally:
            handle.remove()

    def require_alike(self, index: int, alone: Tensor, as_ever: Tensor) -> None:
        """Refuse a block that computes something else when it is run alone.

        Raises:
            ModelError: If it does.
        """
        if not torch.allclose(alone, as_ever.detach(), rtol=1e-4, atol=1e-5):
            where = self.names[index].rpartition(".")[0]
            raise ModelError(_cannot(where, f"block {index} alone gives another output"))

    @contextmanager
    def left(self, hidden: Tensor) -> Iterator[None]:
        """Let the model run inside the block as if ``hidden`` were the last block's output."""
        with self._passed_over(range(len(self)), hidden):
            yield

    @contextmanager
    def _passed_over(self, indices: range, hidden: Tensor | None) -> Iterator[None]:
        """Have blocks return their input, or ``hidden``, without running."""
        for index in indices:
            self.blocks[index].forward = _stub(self.widths[index], hidden)
        try:
            yield
        finally:
            for index in indices:
                del self.blocks[index].forward


def find_chain(model: nn.Module, call: Call) -> Chain:
    """Find the model's blocks, and make sure that each can be run alone.

    They are the children of the list of modules that holds the most parameters. Two probe forwards
    are compared: one as ever, and one block by block.

    Args:
        model: The dense model.
        call: Runs its forward on a small batch, the same each time.

    Raises:
        ModelError: If there is no such list; if its members are not called once each, in order and
            each on the one before's output; or if something else that earlier blocks or trained
            weights make reaches them (an encoder's output, a shared position bias).
    """
    chain, calls = _found(model, call)
    with torch.no_grad():
        hidden = chain.enter(call)
        for index, seen in enumerate(calls):
            hidden = chain.run(call, index, hidden)
            chain.require_alike(index, hidden, seen.output)
    return chain


def find_shapes(model: nn.Module, call: Call) -> Chain:
    """Find the blocks of a model on the meta device; what they compute is not compared.

    Args:
        model: The dense model.
        call: Runs its forward on a small batch of shapes.

    Raises:
        ModelError: As `find_chain`.
    """
    return _found(model, call)[0]


class _ReachedError(Exception):
    """What was wanted of this forward is known."""


@dataclass
class _Seen:
    """One call of a block: what it took, and what it gave."""

    index: int
    hidden: Tensor
    aside: bool
    output: Tensor
    width: int


def _found(model: nn.Module, call: Call) -> tuple[Chain, list[_Seen]]:
    """Return the blocks, and what one forward saw of them."""
    name, found = _largest_list(model)
    names = tuple(f"{name}.{child}" for child, _ in found.named_children())
    blocks = tuple(found.children())
    calls = _watched(blocks, model, call)
    if [seen.index for seen in calls] != list(range(len(blocks))):
        raise ModelError(_cannot(name, "they are not called once each, in their order"))
    for before, after in pairwise(calls):
        if after.hidden is not before.output:
            raise ModelError(_cannot(name, "one block's input is not the output of the one before"))
    if any(seen.aside for seen in calls):
        raise ModelError(_cannot(name, "more than the hidden state reaches them"))
    return Chain(names, blocks, tuple(seen.width for seen in calls)), calls


def _largest_list(model: nn.Module) -> tuple[str, nn.Module]:
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1 and name
    ]
    if not lists:
        raise ModelError(
            "The model has no list of blocks, so that it cannot be measured block by block."
        )
    return max(lists, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))


def _watched(blocks: tuple[nn.Module, ...], model: nn.Module, call: Call) -> list[_Seen]:
    """Return what the calls of one forward saw.

    Gradients are followed, so that tensors which trained weights had a part in are told from masks.
    """
    calls: list[_Seen] = []

    def hook(index: int) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            del module
            hidden = _hidden(args, kwargs)
            given = hidden_in(output)
            others = [*_tensors(args), *_tensors(kwargs)]
            aside = any(other is not hidden and other.requires_grad for other in others)
            width = 0 if isinstance(output, Tensor) else len(output)
            calls.append(_Seen(index, hidden, aside, given, width))

        return note

    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    handles = [
        block.register_forward_hook(hook(index), with_kwargs=True)
        for index, block in enumerate(blocks)
    ]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
    return calls


@contextmanager
def _given(
    block: nn.Module, hidden: Tensor | None, *, stop_before: bool = False
) -> Iterator[list[Tensor]]:
    """Give a block another hidden state; note its output, or its input, and stop there."""
    seen: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del module
        if stop_before:
            seen.append(_hidden(args, kwargs))
            raise _ReachedError
        return with_hidden(args, kwargs, hidden)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module, args
        seen.append(hidden_in(output))
        raise _ReachedError

    # What else hooks on this block runs before: it is the last thing that this forward does.
    handles = [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.register_forward_hook(after),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor | None) -> Any:
    """Return a block's arguments with another hidden state among them."""
    if args and isinstance(args[0], Tensor):
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def _stub(width: int, hidden: Tensor | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = _hidden(args, kwargs) if hidden is None else hidden
        return (given, *[None] * (width - 1)) if width else given

    return forward


def _run(call: Call) -> None:
    try:
        call()
    except _ReachedError:
        return


def _one(seen: list[Tensor]) -> Tensor:
    if len(seen) != 1:
        raise ModelError("A block was called another number of times than when it was probed.")
    return seen[0]


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(found, Tensor):
        raise ModelError("A block takes no hidden state as its first argument.")
    return found


def hidden_in(output: Any) -> Tensor:
    """Return the hidden state in a block's output."""
    found = output[0] if isinstance(output, tuple) else output
    if not isinstance(found, Tensor):
        raise ModelError(f"A block gives a {type(output).__name__} and no tensor.")
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _cannot(name: str, reason: str) -> str:
    return f"The blocks in {name} cannot be measured one by one: {reason}."
