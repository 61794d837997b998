"""One unit after truncation, and the shapes of the model that it is part of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compressor.layers.candidates import Candidates, specs_of
from compressor.layers.surgery import install, structural_copy
from compressor.methods.factorize import factorized
from compressor.methods.recipe import Recipe
from compressor.streaming.decompositions import Spectra, Whole
from compressor.streaming.units import Units, present


def compressed_unit(
    units: Units, name: str, ranks: Mapping[str, int], recipe: Recipe, spectra: Spectra
) -> dict[str, Tensor]:
    """Return one unit's tensors after truncation in float32, by their names in memory."""
    unit = units[name]
    model = units.filled(unit)
    inside = {layer: rank for layer, rank in ranks.items() if layer in unit.layers}
    return present(factorized(model, unit.layers, inside, recipe, Whole(spectra)))


def compressed_shapes(
    model: nn.Module, candidates: Candidates, ranks: Mapping[str, int]
) -> nn.Module:
    """Return a copy of a model on the meta device with its layers factorized, of shapes alone."""
    layers = candidates.layers
    small = structural_copy(model)
    install(
        small,
        {
            part: spec
            for name, rank in ranks.items()
            if rank <= layers[name].break_even_rank
            for part, spec in specs_of(model, layers[name], rank).items()
        },
    )
    return small
