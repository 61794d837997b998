"""From ranks and metrics to a model whose layers are factorized."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from compressor.cache import Cache, Tensors
from compressor.collapse.spill import SpillDirectory, SpilledLayers
from compressor.collapse.watch import LayerStatistics
from compressor.distributed import ALONE, Group, shares
from compressor.errors import LayerError
from compressor.layers.candidates import Candidate, specs_of
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.surgery import install, structural_copy
from compressor.methods.decompose import Decomposition
from compressor.methods.lookup import truncated_lookup
from compressor.methods.metrics import METRICS, Truncate, Truncation
from compressor.methods.recipe import Recipe
from compressor.methods.separable import SeparableDecomposition, decompose_separable, ridged


class Decompositions:
    """Each layer's decomposition under a recipe's metrics, computed once and kept.

    They are kept in memory, or on disk where the statistics are.

    Recipes that differ only in how the budget is shared use the same decompositions.

    Args:
        model: The dense model.
        layers: Its candidates by name.
        statistics: Statistics by layer name; layers without any are truncated in the identity.
        cache: Where they are kept beyond this run; its keys name the model and the statistics.
        group: Processes that share the work; each decomposes some of the layers.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Candidate],
        statistics: Mapping[str, LayerStatistics],
        cache: Cache | None = None,
        group: Group = ALONE,
    ) -> None:
        self._cache, self._group = cache, group
        self._modules = dict(model.named_modules())
        self._layers = layers
        self._statistics = statistics
        self._kept: dict[tuple[str, str, str, object], Truncation] = {}

    def of(self, layers: Mapping[str, Candidate]) -> Decompositions:
        """Return the decompositions of the same layers in other forms; what is made is shared."""
        other = copy.copy(self)
        other._layers = layers
        return other

    def get(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's decomposition in the recipe's metric.

        Raises:
            LayerError: If the layer's weights or statistics are not finite or missing, or the
                eigendecomposition fails.
        """
        if isinstance(self._statistics, SpilledLayers):
            return self._spilled(name, recipe, self._statistics.spill)
        key = (name, self._layers[name].kind, recipe.metric, recipe.alpha)
        if key not in self._kept:
            if self._group.size > 1:
                self._share(recipe)
            else:
                self._kept[key] = self._found(name, recipe)
        return self._kept[key]

    def of_every_rank(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's decomposition with the factors above break-even too, made anew.

        Raises:
            LayerError: As `get`.
        """
        made = self._whole(name, recipe)
        if not isinstance(self._statistics, SpilledLayers):
            key = (name, self._layers[name].kind, recipe.metric, recipe.alpha)
            self._kept.setdefault(key, self._to_keep(name, made))
        return made

    def _share(self, recipe: Recipe) -> None:
        """Decompose this process's share of the layers, and give and take the rest."""
        costs = [layer.full_rank**2 * sum(layer.shape) for layer in self._layers.values()]
        owners = dict(zip(self._layers, shares(costs, self._group.size), strict=True))
        mine = {
            name: self._made(name, recipe)
            for name, owner in owners.items()
            if owner == self._group.rank
        }
        for name, owner in owners.items():
            state = _state_of(mine[name]) if name in mine else None
            if state is not None:
                state = {part: tensor.cpu().contiguous() for part, tensor in state.items()}
            state = self._group.given(state, by=owner)
            assert state is not None
            key = (name, self._layers[name].kind, recipe.metric, recipe.alpha)
            self._kept[key] = _truncation_of(state, self._weight(name).device)

    def _spilled(self, name: str, recipe: Recipe, spill: SpillDirectory) -> Truncation:
        """Return a decomposition that is kept on disk, as the statistics are."""
        kind = self._layers[name].kind
        key = (name, kind, recipe.metric, recipe.alpha)
        if key in self._kept:
            return self._kept[key]
        file = f"{name} as {kind} in {recipe.metric}, {recipe.alpha}"
        if file not in spill:
            made = self._found(name, recipe)
            try:
                spill.write(file, _state_of(made))
            except OSError:  # no room on disk: there may be some in memory
                self._kept[key] = made
                return made
        return _truncation_of(spill.read(file), self._weight(name).device)

    def _found(self, name: str, recipe: Recipe) -> Truncation:
        if self._cache is None:
            return self._made(name, recipe)
        of = {
            "layer": name,
            "kind": self._layers[name].kind,
            "metric": recipe.metric,
            "alpha": recipe.alpha,
        }
        made: list[Truncation] = []

        def make() -> Tensors:
            made.append(self._made(name, recipe))
            return _state_of(made[0])

        state = self._cache.tensors("decomposition", of, make)
        return made[0] if made else _truncation_of(state, self._weight(name).device)

    def _made(self, name: str, recipe: Recipe) -> Truncation:
        return self._to_keep(name, self._whole(name, recipe))

    def _to_keep(self, name: str, made: Truncation) -> Truncation:
        """Return it without the factors of ranks at which the layer stays dense.

        The factors have the digits of the weights that will be made of them, float32's at least.
        """
        if not isinstance(made.decomposition, Decomposition):
            return made
        dtype = torch.promote_types(self._weight(name).dtype, torch.float32)
        kept = made.decomposition.to_keep(self._layers[name].break_even_rank, dtype)
        return replace(made, decomposition=kept)

    def _whole(self, name: str, recipe: Recipe) -> Truncation:
        statistics, layer = self._statistics.get(name), self._layers[name]
        looked_up = statistics is not None and statistics.counts is not None
        truncate = METRICS.get(recipe.metric).truncate
        if looked_up:
            truncate = truncated_lookup(recipe.metric)
        elif layer.folded is not None:
            truncate = truncated_separably(recipe.metric, layer)
        try:
            return truncate(_double(self._weight(name)), statistics, recipe)
        except ValueError as error:
            raise LayerError(name, f"it cannot be decomposed: {error}") from error

    def _weight(self, name: str) -> Tensor:
        return LAYER_KINDS.get(self._layers[name].kind).matrix(self._modules[name])


def truncated_separably(metric: str, layer: Candidate) -> Truncate:
    """Return how a convolution in spatial form is truncated in a metric of this name.

    Raises:
        ValueError: If the metric is not known on both sides.
    """
    sides = METRICS.get(metric).sides
    if sides is None:
        raise ValueError(f"the metric {metric!r} knows no spatial form (--conv-form channel)")

    def truncate(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
        found = sides(weight, statistics, recipe)
        inputs = None if found.inputs is None else ridged(found.inputs)
        return Truncation(
            decompose_separable(
                weight, layer.taps, inputs, found.outputs, most=layer.break_even_rank
            ),
            found.mean,
        )

    return truncate


def _state_of(truncation: Truncation) -> Tensors:
    found = truncation.decomposition
    assert isinstance(found, Decomposition | SeparableDecomposition)
    state: Tensors = {field.name: getattr(found, field.name) for field in fields(found)}
    return state if truncation.mean is None else {**state, "mean": truncation.mean}


def _truncation_of(state: Tensors, device: torch.device) -> Truncation:
    device = torch.device("cpu") if device.type == "mps" else device
    found = {name: tensor.to(device) for name, tensor in state.items()}
    mean = found.pop("mean", None)
    form = SeparableDecomposition if "filters" in found else Decomposition
    return Truncation(form(**found), mean)


def factorized(
    model: nn.Module,
    layers: Mapping[str, Candidate],
    ranks: Mapping[str, int],
    recipe: Recipe,
    decompositions: Decompositions,
) -> nn.Module:
    """Return a copy of ``model`` with layers factorized, in eval mode.

    Tensors that do not change are shared with ``model``.

    Args:
        model: The dense model.
        layers: Its candidates by name.
        ranks: Rank by layer name; a layer above its break-even rank stays dense.
        recipe: Metrics of the truncation.
        decompositions: Where each layer's decomposition comes from.

    Raises:
        LayerError: If a layer cannot be factorized.
    """
    modules = dict(model.named_modules())
    chosen = {name: rank for name, rank in ranks.items() if rank <= layers[name].break_even_rank}
    compressed = structural_copy(model).eval()
    install(
        compressed,
        {
            part: spec
            for name, rank in chosen.items()
            for part, spec in specs_of(model, layers[name], rank).items()
        },
    )
    replaced = dict(compressed.named_modules())
    for name, rank in chosen.items():
        kind = LAYER_KINDS.get(layers[name].kind)
        truncation = decompositions.get(name, recipe)
        up, down = truncation.decomposition.factors(rank)
        bias = getattr(modules[name], "bias", None)
        if bias is not None:
            bias = corrected_bias(
                _double(bias.detach()), kind.matrix(modules[name]), up, down, truncation.mean
            )
        kind.fill(replaced[name], up, down, bias)
        for head in layers[name].tied:  # its weight is the embedding's, turned
            bias = getattr(modules[head], "bias", None)
            LAYER_KINDS.get("linear").fill(replaced[head], down.T, up.T, bias)
    return compressed


def corrected_bias(
    bias: Tensor, weight: Tensor, up: Tensor, down: Tensor, mean: Tensor | None
) -> Tensor:
    """Return b + (W − Ŵ) μ [m]: the truncated layer's mean output is the dense layer's."""
    if mean is None:
        return bias
    return bias + _double(weight) @ mean - up @ (down @ mean)


def _double(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
