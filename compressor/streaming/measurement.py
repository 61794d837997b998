"""What methods that look at weights alone ask of a model, answered one unit at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from compressor.errors import LayerError, UsageError
from compressor.layers.kinds import LAYER_KINDS
from compressor.methods.decompose import Decomposition
from compressor.methods.factorize import Decompositions
from compressor.methods.measurement import Measurement
from compressor.methods.metrics import Truncation
from compressor.methods.recipe import Recipe
from compressor.progress import SILENT, Progress
from compressor.streaming.units import Units


class Passing(Decompositions):
    """Decompositions that are made when they are asked for, and not kept."""

    def get(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's decomposition."""
        return self._made(name, recipe)


class Energies(Decompositions):
    """Squared singular values of each layer; factors are made when a unit is written.

    Layers are asked for in their own order, so that each unit is read once.

    Args:
        units: The model's parts.
        layers: Its candidates by name.
        progress: Told of each layer.
    """

    def __init__(self, units: Units, measurement: Measurement) -> None:
        super().__init__(measurement.model, measurement.candidates.layers, {})
        self._units = units
        self._energies: dict[str, torch.Tensor] = {}

    def get(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's energies; the factors have no columns.

        Raises:
            LayerError: If its weights cannot be decomposed.
            UsageError: If the recipe asks for more than weights.
        """
        if recipe.metric != "identity":
            raise UsageError(f"The metric {recipe.metric!r} needs data, and streaming reads none.")
        if name not in self._energies:
            self._energies[name] = self._of(name, recipe)
        energies = self._energies[name]
        rows, columns = self._layers[name].shape
        return Truncation(
            Decomposition(energies, energies.new_empty(rows, 0), energies.new_empty(0, columns))
        )

    def _of(self, name: str, recipe: Recipe) -> torch.Tensor:
        if recipe.allocation == "uniform":  # every layer's share is the same, whatever it holds
            return torch.zeros(self._layers[name].full_rank, dtype=torch.float64)
        module = self._units.holding(name).get_submodule(name)
        weight = LAYER_KINDS.get(self._layers[name].kind).matrix(module).double()
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        try:
            values: torch.Tensor = torch.linalg.eigvalsh(gram)
        except RuntimeError as error:
            raise LayerError(name, f"it cannot be decomposed: {error}") from error
        return values.flip(0).clamp_min(0)


@dataclass(frozen=True)
class StreamedMeasurement(Measurement):
    """A model on the meta device with its candidates, and no data.

    Args:
        units: The model's parts.
    """

    units: Units | None = field(default=None, repr=False)

    @cached_property
    def decompositions(self) -> Decompositions:
        """The layers' energies."""
        assert self.units is not None
        return Energies(self.units, self)

    def factorized(
        self, ranks: dict[str, int], recipe: Recipe, *, progress: Progress = SILENT
    ) -> tuple[nn.Module, Recipe]:
        """Return the model as it is, and the recipe: nothing is corrected without data."""
        del ranks, progress
        return self.model, recipe.model_copy(update={"norm_correction": False})
