"""What methods ask of a model whose weights are on disk, answered one unit at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn

from compressor.methods.judging import Bounded
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.progress import SILENT, Progress
from compressor.streaming.decompositions import Spectra
from compressor.streaming.judging import Judge
from compressor.streaming.units import Units


@dataclass(frozen=True)
class StreamedMeasurement(Measurement):
    """A model on the meta device with its candidates, and what was measured of it, on disk.

    Args:
        units: The model's parts.
        factors: Where decompositions go; None where nothing was measured.
        judge_on_disk: Runs compressed models on the selection data; None where there is none.
    """

    units: Units | None = field(default=None, repr=False)
    factors: Path | None = None
    judge_on_disk: Judge | None = field(default=None, repr=False)

    @property
    def spectra(self) -> Spectra:
        """The layers' decompositions."""
        found = self.decompositions
        assert isinstance(found, Spectra)
        return found

    @cached_property
    def decompositions(self) -> Spectra:
        """The layers' energies; factors are on disk."""
        assert self.units is not None
        return Spectra(self.units, self.candidates, self.layers, self.factors)

    @property
    def refits(self) -> bool:
        """No: the refit runs the whole model, dense and compressed."""
        return False

    def factorized(
        self, ranks: dict[str, int], recipe: Recipe, *, progress: Progress = SILENT
    ) -> tuple[nn.Module, Recipe]:
        """Return the model as it is, and the recipe: language models have no BatchNorm."""
        del ranks, progress
        return self.model, recipe.model_copy(update={"norm_correction": False})

    def _tried(
        self, ranks: dict[str, int], recipe: Recipe, limit: float | None
    ) -> tuple[nn.Module | None, Recipe, Bounded]:
        """Run the model that ranks and recipe give, one block at a time; it is never there."""
        del limit
        if self.judge_on_disk is None:
            raise ValueError("there is no selection data to judge on")
        _, settled = self.factorized(ranks, recipe)
        found = self.judge_on_disk(self.candidates, ranks, settled, self.spectra)
        return None, settled, Bounded.of(found)
