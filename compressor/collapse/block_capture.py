"""The measuring pass over windows of tokens, one block at a time, for where memory is tight.

All batches go through one block before the next one is begun. Hidden states between blocks are
kept on disk. On the way back each block is run again from its input, now with hooks and gradients:
activations, covariances and the Fisher of one block exist at a time, and go to disk when all
batches have passed. Compared with `compressor.collapse.token_capture`, which gathers the same, this
costs one more forward pass and the disk space of every hidden state between blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.collapse.block_parts import parts_of
from compressor.collapse.capture import (
    Statistics,
    centred_moments,
    centring_batches,
    frozen,
    kept_energies,
    loss_moments,
)
from compressor.collapse.chain import Chain
from compressor.collapse.journal import Journal
from compressor.collapse.residency import IN_MEMORY, Residency
from compressor.collapse.row_energy import RowEnergies
from compressor.collapse.spill import HiddenStates, SpillDirectory, SpilledLayers
from compressor.collapse.token_capture import FrequentTokens, WatchedHead, by_head
from compressor.collapse.watch import Watch
from compressor.forward import Batches, Inputs
from compressor.heap import give_back_freed
from compressor.layers.candidates import Candidates
from compressor.progress import SILENT, Progress
from compressor.tokens import TokenForward, uncached

Step = Callable[[Inputs, Tensor], Tensor]
"""Runs a part of the model on a batch's inputs and the hidden state before that part."""


def capture_blocks(
    model: nn.Module,
    batches: Batches,
    candidates: Candidates,
    *,
    forward: TokenForward,
    chain: Chain,
    gradients: bool = False,
    loss: bool = False,
    seed: int = 0,
    residency: Residency = IN_MEMORY,
    kept: Path | None = None,
    progress: Progress = SILENT,
    row_samples: int = 0,
) -> Statistics:
    """Gather what `capture_tokens` gathers, block by block; the statistics lie on disk.

    Args:
        model: The dense model, in eval mode.
        batches: Batches of (inputs, labels [B, T]): the token that each position predicts.
        candidates: The layers to watch.
        forward: How to call the model.
        chain: The model's blocks.
        gradients: Gather the Fisher too.
        loss: Gather the loss's own gradients under the true tokens instead.
        seed: Seed of the random signs.
        residency: Has the weights of each part in memory while it is run.
        kept: A directory for what goes to disk, in which a killed run is taken up after the last
            part that it finished; None takes one that is gone with the statistics. It has to be
            of the same model, batches and arguments.
        progress: Told of each part.
        row_samples: As `compressor.collapse.capture.capture` takes it; a run that is taken up has
            none.

    Raises:
        ValueError: If both ``gradients`` and ``loss`` are asked for.
        DataError: If there is nothing to predict.
        ModelError: If layers of several parts share their input rows.
        LayerError: If a layer's rows or gradients hold NaN or Inf.
    """
    if gradients and loss:
        raise ValueError("one pass gathers the Fisher or the loss's gradients, not both")
    with frozen(model), uncached(model):
        run = _Run(
            model,
            batches,
            candidates,
            chain=chain,
            forward=forward,
            gradients=gradients,
            loss=loss,
            seed=seed,
            residency=residency,
            kept=kept,
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
    """The state of one pass: hidden states before each block, and the gradients that go back.

    On disk are ``hidden-i``, the input of block i, and ``gradients-i``, the gradients there.
    """

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
        residency: Residency,
        kept: Path | None,
        row_samples: int,
    ) -> None:
        self._model, self._batches, self._forward = model, batches, forward
        self._chain, self._fisher, self._loss = chain, gradients, loss
        self._seed, self._residency = seed, residency
        self.frequent = FrequentTokens(batches)
        body, self._outside = by_head(model, candidates)
        self._before, self._blocks, self._after = parts_of(body, chain)
        spill = SpillDirectory(self._watch(body.only(())).home, kept)
        self.layers = SpilledLayers(spill, candidates)
        self._files: dict[str, HiddenStates] = {}
        self._scales: dict[int, float] = {}
        self._row_samples = row_samples if gradients else 0
        self._energies: list[RowEnergies] = []
        self._journal = Journal(None if kept is None else kept / "journal.json")
        self._take_up(self._journal.state)

    @property
    def _back(self) -> bool:
        return self._fisher or self._loss

    def all(self, progress: Progress) -> None:
        """Go through the model and, with gradients, back."""
        steps = list(self._steps())
        for name, work in progress.track(steps, description="measure", total=len(steps)):
            if name in self._journal:
                continue
            spent = work()
            self._journal.note(name, self._state())
            for used in spent:
                self._files.pop(used).drop()
            give_back_freed()
        for file in self._files.values():
            file.drop()

    def _steps(self) -> Iterator[tuple[str, Callable[[], Iterable[str]]]]:
        """Yield each part by its name; it returns which files nobody needs any more."""
        blocks = range(len(self._chain))
        yield "enter", self._enter_all
        for block in blocks:
            yield f"block {block}", partial(self._onward, block)
        yield "leave", self._leave
        if not self._back:
            return
        for block in reversed(blocks):
            yield f"back {block}", partial(self._back_through, block)
        if self._before.layers:
            yield "back to the beginning", self._back_to_the_beginning

    def energies_in(self, candidates: Candidates) -> tuple[RowEnergies, ...]:
        """Return the energies of each batch's rows, in the order of the candidates."""
        return tuple(
            {name: found[name] for name in candidates.layers if name in found}
            for found in self._energies
        )

    def _energies_of(self, index: int) -> RowEnergies | None:
        return self._energies[index] if index < len(self._energies) else None

    def _state(self) -> dict[str, object]:
        """Return what a killed run has to know to go on, as plain data."""
        return {
            "tensors": self.layers.spill.files,
            "parts": self.layers.parts,
            "places": {name: file.places for name, file in self._files.items()},
            "scales": list(self._scales.items()),
        }

    def _take_up(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self.layers.spill.know(state["tensors"])
        self.layers.parts |= state["parts"]
        self._scales |= dict(state["scales"])
        for name, places in state["places"].items():
            self._files[name] = HiddenStates(self._path(name), self._forward.device, places)

    def _enter_all(self) -> Iterable[str]:
        """Make the first block's input; measure what makes it where nothing comes back."""
        made = self._begun("hidden-0")
        with self._residency.before():
            watch = self._watch(self._before if not self._back else self._before.only(()))
            samples = 0
            for index, (inputs, labels) in enumerate(self._batches):
                assert labels is not None
                kept_energies(self._energies, samples < self._row_samples)
                samples += len(labels)
                watch.begin(inputs, self.frequent.of(labels))
                with torch.no_grad(), watch.attached():
                    made.put(index, self._chain.enter(partial(self._forward, self._model, inputs)))
                watch.end()
        self.layers.add(watch.statistics())
        return ()

    def _onward(self, block: int) -> Iterable[str]:
        """Run all batches through a block; measure it too where nothing comes back."""
        before, after = self._files[f"hidden-{block}"], self._begun(f"hidden-{block + 1}")
        with self._residency.block(block):
            part = self._blocks[block] if not self._back else self._blocks[block].only(())
            watch, step = self._watch(part), self._alone(block)
            with torch.no_grad(), watch.attached():
                for index, (inputs, labels) in enumerate(self._batches):
                    assert labels is not None
                    watch.begin(inputs, self.frequent.of(labels))
                    after.put(index, step(inputs, before.get(index)))
                    watch.end()
        self.layers.add(watch.statistics())
        return () if self._back else (f"hidden-{block}",)

    def _leave(self) -> Iterable[str]:
        """From the last block's output through the rest and the head, and back to that output."""
        end = len(self._chain)
        states, gradients = self._files[f"hidden-{end}"], self._begun(f"gradients-{end}")
        with self._residency.after():
            head = WatchedHead(
                self._model,
                self._outside,
                self.frequent,
                self._forward.device,
                gradients=self._fisher,
                loss=self._loss,
                seed=self._seed,
            )
            watch = self._prepared(self._after, states, self._exit)
            for index, (inputs, labels) in enumerate(self._batches):
                assert labels is not None
                leaf = states.get(index).requires_grad_(self._back)
                watch.begin(inputs, self.frequent.of(labels))
                watch.gradients.energies = self._energies_of(index)
                with torch.set_grad_enabled(self._back), watch.attached():
                    hidden = self._exit(inputs, leaf)
                gradient = head.gradient(hidden.detach(), labels)
                if gradient is not None:
                    # As `compressor.collapse.capture.backward`: denormal numbers are slow.
                    self._scales[index] = scale = float(gradient.abs().max()) or 1.0
                    watch.gradients.scale = scale
                    (found,) = torch.autograd.grad(hidden, leaf, gradient / scale)
                    gradients.put(index, found)
                watch.end()
            self.layers.add(watch.statistics())
            self.layers.add(head.statistics())
        return (f"hidden-{end}",)

    def _back_through(self, block: int) -> Iterable[str]:
        """Run a block again from its input, with hooks, and take the gradients back through it."""
        states, below = self._files[f"hidden-{block}"], self._begun(f"gradients-{block}")
        with self._residency.block(block):
            self._step_back(self._blocks[block], block, states, self._alone(block), below)
        return (f"hidden-{block}", f"gradients-{block + 1}")

    def _back_to_the_beginning(self) -> Iterable[str]:
        with self._residency.before():
            self._step_back(self._before, -1, None, self._enter, None)
        return ("gradients-0",)

    def _step_back(
        self,
        part: Candidates,
        block: int,
        states: HiddenStates | None,
        step: Step,
        below: HiddenStates | None,
    ) -> None:
        """Measure a part on its inputs and on the gradients at its outputs.

        Args:
            part: Its layers.
            block: Its number; −1 is what comes before all blocks.
            states: Its inputs; None of what comes first.
            step: Runs it.
            below: Where the gradients at its inputs go; None drops them.
        """
        above = self._files[f"gradients-{block + 1}"]
        watch = self._prepared(part, states, step)
        with watch.attached(), torch.enable_grad():
            for index, (inputs, labels) in enumerate(self._batches):
                assert labels is not None
                leaf = torch.empty(0) if states is None else states.get(index)
                leaf.requires_grad_()
                watch.begin(inputs, self.frequent.of(labels))
                watch.gradients.scale = self._scales[index]
                watch.gradients.energies = self._energies_of(index)
                output = step(inputs, leaf)
                if output.requires_grad:
                    torch.autograd.backward(output, above.get(index))
                watch.end()
                if below is not None:
                    assert leaf.grad is not None
                    below.put(index, leaf.grad)
        self.layers.add(watch.statistics())

    def _prepared(self, part: Candidates, states: HiddenStates | None, step: Step) -> Watch:
        """Return a watch with empty accumulators for what goes back; rows are centred as ever."""
        watch = self._watch(part)
        if self._loss:
            watch.gradients.loss = loss_moments(self._model, part, watch.home)
        if self._fisher:
            first = self._watch(part, means_only=True)
            if any(layer.has_bias for layer in part.layers.values()):
                self._centre(first, states, step)
            watch.gradients.fisher = centred_moments(self._model, first)
        return watch

    def _centre(self, watch: Watch, states: HiddenStates | None, step: Step) -> None:
        with torch.no_grad(), watch.attached():
            for index, (inputs, labels) in enumerate(centring_batches(self._batches)):
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

    def _begun(self, name: str) -> HiddenStates:
        self._files[name] = HiddenStates(self._path(name), self._forward.device)
        return self._files[name]

    def _path(self, name: str) -> Path:
        return self.layers.spill.path / name
