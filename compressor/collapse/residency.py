"""Which of a model's weights are in memory while its blocks run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compressor.collapse.chain import Call, Chain, hidden_in, with_hidden


class Residency(Protocol):
    """Has the weights of one part of a model in memory inside a block of code, and of no other."""

    def before(self) -> AbstractContextManager[None]:
        """Have what makes the first block's input."""
        ...

    def block(self, index: int) -> AbstractContextManager[None]:
        """Have one block."""
        ...

    def after(self) -> AbstractContextManager[None]:
        """Have what takes the last block's output: a norm, the head."""
        ...


class InMemory:
    """All weights are in memory all the time."""

    def before(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def block(self, index: int) -> AbstractContextManager[None]:
        """Do nothing."""
        del index
        return nullcontext()

    def after(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


IN_MEMORY: Residency = InMemory()


def check_chain(chain: Chain, call: Call, residency: Residency) -> None:
    """Make sure that each block computes alone what it computes in the model's own forward.

    The blocks are read twice: once as the forward comes by, and once each by itself.

    Args:
        chain: Blocks that were found by their shapes.
        call: Runs the model's forward on a small batch, the same each time.
        residency: Has weights in memory.

    Raises:
        ModelError: If one computes something else.
    """
    with torch.no_grad():
        with residency.before():
            first = chain.enter(call)
        outputs: list[Tensor] = []
        with _coming_by(chain, first, outputs, residency):
            chain.run_to_the_end(call)
        hidden = first
        for index, output in enumerate(outputs):
            with residency.block(index):
                hidden = chain.run(call, index, hidden)
            chain.require_alike(index, hidden, output)


@contextmanager
def _coming_by(
    chain: Chain, first: Tensor, outputs: list[Tensor], residency: Residency
) -> Iterator[None]:
    """Have each block in memory while the model's own forward runs it, and note its output."""
    held = ExitStack()

    def before(index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            del module
            held.enter_context(residency.block(index))
            return None if index else with_hidden(args, kwargs, first)

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module, args
        outputs.append(hidden_in(output).detach())
        held.close()

    handles = [
        handle
        for index, block in enumerate(chain.blocks)
        for handle in (
            block.register_forward_pre_hook(before(index), with_kwargs=True),
            block.register_forward_hook(after),
        )
    ]
    try:
        yield
    finally:
        held.close()
        for handle in handles:
            handle.remove()
