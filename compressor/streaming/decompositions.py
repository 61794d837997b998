"""Decompositions of layers whose weights are on disk: spectra in memory, factors on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compressor.collapse.watch import LayerStatistics
from compressor.errors import LayerError
from compressor.layers.candidates import Candidates
from compressor.layers.kinds import LAYER_KINDS
from compressor.methods.decompose import Decomposition
from compressor.methods.factorize import Decompositions
from compressor.methods.metrics import Truncation
from compressor.methods.recipe import Recipe
from compressor.streaming.units import Units

_UP, _DOWN, _ENERGIES, _MEAN = "up", "down", "energies", "mean"


class Spectra(Decompositions):
    """What each rank of a layer is worth; factors are made once, and are read where they are used.

    Layers are asked for in their own order, so that each unit is read once. Of the weights alone
    nothing but singular values is computed, and factors are made when they are used.

    Args:
        units: The model's parts.
        candidates: Its layers.
        statistics: What was measured, by layer; empty where only weights are looked at.
        directory: Where factors go, up to each layer's break-even rank; None where there are no
            statistics.
    """

    def __init__(
        self,
        units: Units,
        candidates: Candidates,
        statistics: Mapping[str, LayerStatistics],
        directory: Path | None,
    ) -> None:
        super().__init__(units.shapes, candidates.layers, statistics)
        self._units, self._directory = units, directory
        self._energies: dict[tuple[str, str, object], Tensor] = {}
        self._numbers = {name: number for number, name in enumerate(candidates.layers)}
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's energies; the factors have no columns.

        Raises:
            LayerError: If its weights cannot be decomposed.
        """
        key = (name, recipe.metric, recipe.alpha)
        if recipe.allocation == "uniform":  # every layer's share is the same, whatever it holds
            return self._without_factors(
                name, torch.zeros(self._layers[name].full_rank, dtype=torch.float64)
            )
        if key not in self._energies:
            self._energies[key] = self._of(name, recipe)
        return self._without_factors(name, self._energies[key])

    def whole(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's decomposition with its factors up to the break-even rank."""
        path = self._path(name, recipe)
        if path is None:
            return self._made(name, recipe)
        if not path.is_file():
            return self._written(name, recipe, path)
        with safe_open(path, framework="pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        return Truncation(
            Decomposition(found[_ENERGIES], found[_UP], found[_DOWN]), found.get(_MEAN)
        )

    def _of(self, name: str, recipe: Recipe) -> Tensor:
        path = self._path(name, recipe)
        if path is None:
            return self._singular_values(name)
        if not path.is_file():
            return self._written(name, recipe, path).decomposition.energies
        with safe_open(path, framework="pt") as file:
            energies: Tensor = file.get_tensor(_ENERGIES)
        return energies

    def _written(self, name: str, recipe: Recipe, path: Path) -> Truncation:
        """Decompose a layer and keep the result on disk, whole or not at all."""
        made = self._made(name, recipe)
        found = made.decomposition
        assert isinstance(found, Decomposition)
        state = {_ENERGIES: found.energies.cpu(), _UP: found.up, _DOWN: found.down}
        if made.mean is not None:
            state[_MEAN] = made.mean
        temporary = path.with_suffix(".part")
        save_file(state, temporary)
        temporary.replace(path)
        return made

    def _path(self, name: str, recipe: Recipe) -> Path | None:
        if self._directory is None or recipe.metric == "identity":
            return None
        place = f"{self._numbers[name]:05}-{recipe.metric}-{recipe.alpha}.safetensors"
        return self._directory / place

    def _without_factors(self, name: str, energies: Tensor) -> Truncation:
        rows, columns = self._layers[name].shape
        return Truncation(
            Decomposition(energies, energies.new_empty(rows, 0), energies.new_empty(0, columns))
        )

    def _singular_values(self, name: str) -> Tensor:
        weight = self._weight(name).double()
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        try:
            values: Tensor = torch.linalg.eigvalsh(gram)
        except RuntimeError as error:
            raise LayerError(name, f"it cannot be decomposed: {error}") from error
        return values.flip(0).clamp_min(0)

    def _weight(self, name: str) -> Tensor:
        module = self._units.holding(name).get_submodule(name)
        return LAYER_KINDS.get(self._layers[name].kind).matrix(module)


class Whole(Decompositions):
    """The decompositions with their factors, for layers that are about to be replaced."""

    def __init__(self, spectra: Spectra) -> None:
        self._spectra = spectra

    def get(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's decomposition."""
        return self._spectra.whole(name, recipe)
