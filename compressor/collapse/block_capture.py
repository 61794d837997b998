"""The measuring pass over windows of tokens, one block at a time, for where memory is tight.

All batches go through one block before the next one is begun. Hidden states between blocks are
kept on disk. On the way back each block is run again from its input, now with hooks and gradients:
activations, covariances and the Fisher of one block exist at a time, and go to disk when all
batches have passed. Compared with `compressor.collapse.token_capture`, which gathers the same, this
costs one more forward pass and the disk space of every hidden state between blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from compressor.collapse.capture import (
    CENTRING_BATCHES,
    Statistics,
    centred_moments,
    frozen,
    kept_energies,
    loss_moments,
)
from compressor.collapse.chain import Chain, find_chain, uncached
from compressor.collapse.row_energy import RowEnergies
from compressor.collapse.spill import HiddenStates, SpillDirectory, SpilledLayers
from compressor.collapse.token_capture import FrequentTokens, WatchedHead, by_head
from compressor.collapse.watch import Watch
from compressor.errors import ModelError
from compressor.forward import Batches, Inputs
from compressor.layers.candidates import Candidates
from compressor.progress import SILENT, Progress
from compressor.tokens import TokenForward

Step = Callable[[Inputs, Tensor], Tensor]
"""Runs a part of the model on a batch's inputs and the hidden state before that part."""


def capture_blocks(
    model: nn.Module,
    batches: Batches,
    candidates: Candidates,
    *,
    forward: TokenForward,
    probe: Inputs,
    gradients: bool = False,
    loss: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
    row_samples: int = 0,
) -> Statistics:
    """Gather what `capture_tokens` gathers, block by block; the statistics lie on disk.

    Args:
        model: The dense model, in eval mode.
        batches: Batches of (inputs, labels [B, T]): the token that each position predicts.
        candidates: The layers to watch.
        forward: How to call the model.
        probe: Inputs of a small batch, to find the blocks by.
        gradients: Gather the Fisher too.
        loss: Gather the loss's own gradients under the true tokens instead.
        seed: Seed of the random signs.
        progress: Told of each block, twice where there are gradients.
        row_samples: As `compressor.collapse.capture.capture` takes it.

    Raises:
        ValueError: If both ``gradients`` and ``loss`` are asked for.
        DataError: If there is nothing to predict.
        ModelError: If the model's blocks cannot be run one by one.
        LayerError: If a layer's rows or gradients hold NaN or Inf.
    """
    if gradients and loss:
        raise ValueError("one pass gathers the Fisher or the loss's gradients, not both")
    with frozen(model), uncached(model):
        run = _Run(
            model,
            batches,
            candidates,
            chain=find_chain(model, partial(forward, model, probe)),
            forward=forward,
            gradients=gradients,
            loss=loss,
            seed=seed,
            row_samples=row_samples,
        )
        run.all(progress)
    return Statistics(
        layers=run.layers,
        logits=torch.empty(0, run.frequent.classes),
        labels=run.frequent.labels(),
        pooled={},
        energies=run.energies_in(candidates),
    )


class _Run:
    """The state of one pass: hidden states before each block, and the gradient that goes back."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        candidates: Candidates,
        *,
        chain: Chain,
        forward: TokenForward,
        gradients: bool,
        loss: bool,
        seed: int,
        row_samples: int,
    ) -> None:
        self._model, self._batches, self._forward = model, batches, forward
        self._chain, self._fisher, self._loss = chain, gradients, loss
        self.frequent = FrequentTokens(batches)
        body, head = by_head(model, candidates)
        self._head = WatchedHead(
            model, head, self.frequent, forward.device, gradients=gradients, loss=loss, seed=seed
        )
        self._before, self._blocks, self._after = _parts(body, chain)
        spill = SpillDirectory(self._watch(body.only(())).home)
        self.layers = SpilledLayers(spill, candidates)
        self._gradients = HiddenStates(spill.path / "gradients", forward.device)
        self._scales: dict[int, float] = {}
        self._row_samples = row_samples if gradients else 0
        self._energies: list[RowEnergies] = []

    @property
    def _back(self) -> bool:
        return self._fisher or self._loss

    def all(self, progress: Progress) -> None:
        """Go through the model and, with gradients, back."""
        blocks = list(range(len(self._chain)))
        steps = [*blocks, *(reversed(blocks) if self._back else ())]
        total = len(steps)
        states: list[HiddenStates] = [self._states(0)]
        entering = self._watch(self._before)
        samples = 0
        for index, (inputs, labels) in enumerate(self._batches):
            assert labels is not None
            kept_energies(self._energies, samples < self._row_samples)
            samples += len(labels)
            entering.begin(inputs, self.frequent.of(labels))
            with torch.no_grad(), entering.attached():
                states[0].put(index, self._chain.enter(partial(self._forward, self._model, inputs)))
            entering.end()
        if not self._back:
            self.layers.add(entering.statistics())
        for number, block in enumerate(progress.track(steps, description="measure", total=total)):
            if number < len(blocks):
                states.append(self._states(block + 1))
                self._onward(block, states[block], states[block + 1])
                if not self._back:
                    states[block].drop()
                if block == blocks[-1]:
                    self._leave(states[-1])
                    states.pop().drop()
            else:
                self._step_back(self._blocks[block], states[block], self._alone(block))
                states.pop().drop()
        if self._back and self._before.layers:
            self._step_back(self._before, None, self._enter)

    def energies_in(self, candidates: Candidates) -> tuple[RowEnergies, ...]:
        """Return the energies of each batch's rows, in the order of the candidates."""
        return tuple(
            {name: found[name] for name in candidates.layers if name in found}
            for found in self._energies
        )

    def _energies_of(self, index: int) -> RowEnergies | None:
        return self._energies[index] if index < len(self._energies) else None

    def _onward(self, block: int, before: HiddenStates, after: HiddenStates) -> None:
        """Run all batches through a block; measure it too where nothing comes back."""
        part = self._blocks[block] if not self._back else self._blocks[block].only(())
        watch, step = self._watch(part), self._alone(block)
        with torch.no_grad(), watch.attached():
            for index, (inputs, labels) in enumerate(self._batches):
                assert labels is not None
                watch.begin(inputs, self.frequent.of(labels))
                after.put(index, step(inputs, before.get(index)))
                watch.end()
        self.layers.add(watch.statistics())

    def _leave(self, states: HiddenStates) -> None:
        """From the last block's output through the rest and the head, and back to that output."""
        watch = self._prepared(self._after, states, self._exit)
        for index, (inputs, labels) in enumerate(self._batches):
            assert labels is not None
            leaf = states.get(index).requires_grad_(self._back)
            watch.begin(inputs, self.frequent.of(labels))
            watch.energies = self._energies_of(index)
            with torch.set_grad_enabled(self._back), watch.attached():
                hidden = self._exit(inputs, leaf)
            gradient = self._head.gradient(hidden.detach(), labels)
            if gradient is not None:
                # As `compressor.collapse.capture.backward`: denormal numbers are slow.
                self._scales[index] = scale = float(gradient.abs().max()) or 1.0
                watch.gradient_scale = scale
                (found,) = torch.autograd.grad(hidden, leaf, gradient / scale)
                self._gradients.put(index, found)
            watch.end()
        self.layers.add(watch.statistics())
        self.layers.add(self._head.statistics())

    def _step_back(self, part: Candidates, states: HiddenStates | None, step: Step) -> None:
        """Run a part again from its input, with hooks, and take the gradient back through it."""
        watch = self._prepared(part, states, step)
        with watch.attached(), torch.enable_grad():
            for index, (inputs, labels) in enumerate(self._batches):
                assert labels is not None
                leaf = torch.empty(0) if states is None else states.get(index)
                leaf.requires_grad_()
                watch.begin(inputs, self.frequent.of(labels))
                watch.gradient_scale = self._scales[index]
                watch.energies = self._energies_of(index)
                output = step(inputs, leaf)
                if output.requires_grad:
                    torch.autograd.backward(output, self._gradients.get(index))
                watch.end()
                if states is not None and leaf.grad is not None:
                    self._gradients.put(index, leaf.grad)
        self.layers.add(watch.statistics())

    def _prepared(self, part: Candidates, states: HiddenStates | None, step: Step) -> Watch:
        """Return a watch with empty accumulators for what goes back; rows are centred as ever."""
        watch = self._watch(part)
        if self._loss:
            watch.loss = loss_moments(self._model, part, watch.home)
        if self._fisher:
            first = self._watch(part, means_only=True)
            if any(layer.has_bias for layer in part.layers.values()):
                self._centre(first, states, step)
            watch.fisher = centred_moments(self._model, first)
        return watch

    def _centre(self, watch: Watch, states: HiddenStates | None, step: Step) -> None:
        with torch.no_grad(), watch.attached():
            for index, (inputs, labels) in enumerate(self._batches):
                if index == CENTRING_BATCHES:
                    return
                assert labels is not None
                watch.begin(inputs, self.frequent.of(labels))
                step(inputs, torch.empty(0) if states is None else states.get(index))
                watch.end()

    def _enter(self, inputs: Inputs, hidden: Tensor) -> Tensor:
        del hidden
        return self._chain.enter(partial(self._forward, self._model, inputs))

    def _alone(self, block: int) -> Step:
        def step(inputs: Inputs, hidden: Tensor) -> Tensor:
            return self._chain.run(partial(self._forward, self._model, inputs), block, hidden)

        return step

    def _exit(self, inputs: Inputs, hidden: Tensor) -> Tensor:
        with self._chain.left(hidden):
            return self._forward(self._model, inputs)

    def _watch(self, part: Candidates, *, means_only: bool = False) -> Watch:
        return Watch(
            self._model,
            part,
            self.frequent.classes + 1,
            self._forward.device,
            rest=True,
            means_only=means_only,
        )

    def _states(self, number: int) -> HiddenStates:
        return HiddenStates(self.layers.spill.path / f"hidden-{number}", self._forward.device)


def _parts(candidates: Candidates, chain: Chain) -> tuple[Candidates, list[Candidates], Candidates]:
    """Return the candidates before the blocks, in each of them, and after them.

    Raises:
        ModelError: If layers of several parts share their input rows.
    """
    order = list(candidates.layers)
    within = {name: chain.position(name) for name in order}
    inside = [number for number, name in enumerate(order) if within[name] is not None]
    first = inside[0] if inside else len(order)
    before = [name for name in order[:first] if within[name] is None]
    after = [name for name in order[first:] if within[name] is None]
    blocks = [[name for name in order if within[name] == block] for block in range(len(chain))]
    for part in (before, after, *blocks):
        _require_whole(candidates, part)
    return (
        candidates.only(before),
        [candidates.only(part) for part in blocks],
        candidates.only(after),
    )


def _require_whole(candidates: Candidates, part: Iterable[str]) -> None:
    for name in (names := set(part)):
        group = candidates.layers[name].group
        if group not in names:
            raise ModelError(
                f"The model cannot be measured block by block: {name} takes the same input as "
                f"{group}, which lies in another part of it."
            )
