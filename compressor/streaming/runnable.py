"""A model whose weights are on disk, made ready to be run one block at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.calibration import PROBE_SAMPLES, PROBE_TOKENS
from compressor.collapse.capture import frozen
from compressor.collapse.chain import Chain, find_shapes
from compressor.collapse.spill import HiddenStates
from compressor.errors import ModelError
from compressor.forward import Batches, Inputs, call
from compressor.layers.surgery import structural_copy
from compressor.models import LoadedModel
from compressor.models.transformers_buffers import fill_buffers
from compressor.progress import Progress
from compressor.streaming.residency import Read, Reading
from compressor.tokens import TokenForward, uncached


@dataclass(frozen=True)
class Runnable:
    """A model that predicts tokens, on the meta device but for the part that is at work.

    Args:
        model: Its modules.
        chain: Its blocks.
        residency: Has the weights of a part in memory.
    """

    model: nn.Module
    chain: Chain
    residency: Reading

    def last_states(
        self, batches: Batches, directory: Path, *, progress: Progress, description: str
    ) -> HiddenStates:
        """Run all batches through one part after the other; return the last hidden states on disk.

        Args:
            batches: Batches of (inputs, labels [B, T]).
            directory: Where hidden states go; those between blocks are removed.
            progress: Told of each part.
            description: What it calls this pass, and what files are named after.
        """
        forward, name = TokenForward(), description.replace(" ", "-")
        steps = range(-1, len(self.chain) + 1)
        before = None
        with frozen(self.model), uncached(self.model), torch.no_grad():
            for step in progress.track(steps, description=description, total=len(steps)):
                states = HiddenStates(directory / f"{name}-{step + 1}", forward.device)
                with self._held(step):
                    for index, (inputs, _) in enumerate(batches):
                        run = partial(forward, self.model, inputs)
                        if before is None:
                            hidden = self.chain.enter(run)
                        elif step < len(self.chain):
                            hidden = self.chain.run(run, step, before.get(index))
                        else:
                            with self.chain.left(before.get(index)):
                                hidden = run()
                        states.put(index, hidden)
                if before is not None:
                    before.drop()
                before = states
        assert before is not None
        return before

    def _held(self, step: int) -> contextlib.AbstractContextManager[None]:
        if step < 0:
            return self.residency.before()
        if step < len(self.chain):
            return self.residency.block(step)
        return self.residency.after()


def runnable(
    loaded: LoadedModel,
    shapes: nn.Module,
    *,
    units: Iterable[str],
    read: Read,
    buffers: Iterable[str],
) -> Runnable:
    """Return a model that can be run one block at a time.

    Args:
        loaded: The dense model, for its inputs.
        shapes: The model to run, on the meta device, which it stays on.
        units: Names of its units.
        read: Reads one of them.
        buffers: Names of the buffers that are on disk.

    Raises:
        ModelError: If its blocks cannot be run one by one.
    """
    model: Any = structural_copy(shapes).eval()
    probe = shape_probe(loaded)
    # With a cache: without one transformers looks at positions, which shapes do not have.
    with unpadded(model.config), frozen(model):
        forward = TokenForward(device=torch.device("meta"))
        try:
            chain = find_shapes(model, partial(forward, model, probe))
        except (NotImplementedError, RuntimeError) as error:
            raise ModelError(
                f"{loaded.reference} does not run on shapes alone ({error}). Leave out --stream."
            ) from error
        residency = Reading(model, chain, partial(call, model, probe), units=units, read=read)
    fill_buffers(model, buffers)
    return Runnable(model, chain, residency)


def shape_probe(loaded: LoadedModel) -> Inputs:
    """Return inputs of a few samples on the meta device."""
    return loaded.example_inputs(PROBE_SAMPLES, length=PROBE_TOKENS)


@contextlib.contextmanager
def unpadded(config: Any) -> Iterator[None]:
    """Have transformers not look for padding among inputs that are shapes alone."""
    padding = getattr(config, "pad_token_id", None)
    if padding is None:  # not every config knows of one
        yield
        return
    config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = padding
