"""Running compressed models of which no more than one block is in memory, on held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from compressor.collapse.spill import HiddenStates
from compressor.collapse.token_capture import by_head
from compressor.evaluation.loop import Evaluation
from compressor.forward import Batches
from compressor.layers.candidates import Candidates
from compressor.methods.recipe import Recipe
from compressor.models import LoadedModel
from compressor.progress import Progress
from compressor.streaming.compressed import compressed_shapes, compressed_unit
from compressor.streaming.decompositions import Spectra
from compressor.streaming.runnable import Runnable, runnable
from compressor.streaming.scores import scored
from compressor.streaming.units import Units


@dataclass(frozen=True)
class Judge:
    """Compares compressed models with the dense one on the same batches.

    Args:
        loaded: The dense model.
        dense: The same, ready to be run.
        units: Its parts.
        batches: Held-out batches of (inputs, labels [B, T]).
        directory: Where hidden states go.
        progress: Told of each part.
    """

    loaded: LoadedModel = field(repr=False)
    dense: Runnable
    units: Units
    batches: Batches
    directory: Path
    progress: Progress

    @cached_property
    def _states(self) -> HiddenStates:
        return self.dense.last_states(
            self.batches, self.directory, progress=self.progress, description="select dense"
        )

    def __call__(
        self, candidates: Candidates, ranks: Mapping[str, int], recipe: Recipe, spectra: Spectra
    ) -> Evaluation:
        """Return how the model fares that ranks and recipe give."""
        small = runnable(
            self.loaded,
            compressed_shapes(self.units.shapes, candidates, ranks),
            units=self.units.names,
            read=lambda name: compressed_unit(self.units, name, ranks, recipe, spectra),
            buffers=self.units.stored,
        )
        dense = (self.dense, self._states)
        states = small.last_states(
            self.batches, self.directory, progress=self.progress, description="select"
        )
        if keeps_head(self.units, candidates, ranks):
            dense = (small, self._states)
        found = scored(small, states, self.batches, dense=dense)
        states.drop()
        return found


def keeps_head(units: Units, candidates: Candidates, ranks: Mapping[str, int]) -> bool:
    """Return whether what makes logits of the last hidden state is the dense model's."""
    _, head = by_head(units.shapes, candidates)
    changed = {
        part
        for name, rank in ranks.items()
        if rank <= candidates.layers[name].break_even_rank
        for part in (name, *candidates.layers[name].tied)
    }
    return changed.isdisjoint(head.layers)
