"""Does every factorized layer lose what was predicted? Looked at on a few calibration batches.

What a module really computes has to agree with its factors; and its error with what the truncation
was to cost, on the same rows and by the statistics that its rank was chosen by. Where it does not,
something is wrong that no accuracy on a test set need show: factors in the wrong layout, a value
that overflowed, or statistics of other inputs than the layer is called on. A refitted layer is
held to the statistics alone: it answers to the inputs that the compressed network gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compressor.collapse.real_rows import real_rows
from compressor.collapse.token_capture import by_head
from compressor.collapse.watch import LayerStatistics
from compressor.errors import LayerError
from compressor.forward import Inputs, batch_length, token_mask
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LowRank, lowrank_layers
from compressor.methods.decompose import weighted_error
from compressor.methods.factorize import corrected_bias
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.tokens import TokenForward

SAMPLES = 32
ROWS = 1024
"""Calibration samples that are looked at, or rows of a layer: whole batches until there are as
many of either."""

MOST = 64
"""Samples that are looked at where some layer has not been reached before."""

LARGEST_GAP = 30.0
"""How many times the error predicted by the statistics the error on a few samples may be. These
are few and not drawn at random: between classes the error of a layer varies."""

LARGEST_DEVIATION = 0.1
"""Largest difference of the actual output from the one that the factors make, as a share of the
latter's error. What is below `_floor` is rounding."""


@dataclass
class OutputError:
    """Squared error of one layer's outputs, summed over rows.

    Args:
        actual: ‖y − ŷ‖², y of the dense module and ŷ of the factorized one.
        planned: ‖y − ỹ‖², ỹ of the truncation that the plan asks for.
        deviation: ‖ŷ − (U V z + b)‖²: how far the module is off what its factors say.
        energy: ‖y‖².
        rows: Number of rows.
    """

    actual: float = 0.0
    planned: float = 0.0
    deviation: float = 0.0
    energy: float = 0.0
    rows: int = 0


def check_output_errors(
    measurement: Measurement, compressed: nn.Module, recipe: Recipe
) -> dict[str, OutputError]:
    """Compare the actual output error of every factorized layer with the predicted one.

    Args:
        measurement: What the ranks were chosen by.
        compressed: The factorized model.
        recipe: What it was factorized by.

    Returns:
        What was found, by layer.

    Raises:
        LayerError: Naming the first layer whose error is much larger than predicted, whose output
            is not what its factors make, or holds NaN or Inf, or that no sample has reached.
    """
    found = output_errors(measurement, compressed, recipe)
    modules = dict(measurement.model.named_modules())
    layers = lowrank_layers(compressed)
    for name, error in found.items():
        floor = _floor(layers[name].weight.dtype) * error.energy
        if not error.deviation <= LARGEST_DEVIATION**2 * error.actual + floor:
            raise LayerError(
                name,
                f"its outputs are not those of its factors: they differ by "
                f"{_share(error.deviation, error.energy)} of the energy. Exclude it (--exclude "
                f"{name}), and please report this.",
            )
        predictions = {}
        if recipe.refit is None:  # a refit gives up agreement on the dense model's inputs
            predictions["by its truncation"] = error.planned
        statistics = measurement.layers.get(name)
        if statistics is not None:
            predictions["by its statistics"] = error.rows * predicted_error(
                statistics, modules[name], layers[name]
            )
        for whence, predicted in predictions.items():
            if not error.actual <= LARGEST_GAP * predicted + floor:
                raise LayerError(
                    name,
                    f"it loses {_share(error.actual, error.energy)} of its outputs' energy, where "
                    f"{_share(predicted, error.energy)} were predicted {whence}. Give more or "
                    f"other calibration samples, or exclude it (--exclude {name}).",
                )
    return found


def output_errors(
    measurement: Measurement, compressed: nn.Module, recipe: Recipe, *, samples: int = SAMPLES
) -> dict[str, OutputError]:
    """Run the dense model on a few batches, and each factorized layer on the dense one's inputs.

    Raises:
        LayerError: If a layer is reached by no sample, or an output is not finite.
    """
    layers = lowrank_layers(compressed)
    dense = dict(measurement.model.named_modules())
    watched = measurement.candidates
    if isinstance(measurement.forward, TokenForward):  # it stops before the head
        watched = by_head(measurement.model, watched)[0]
    candidates = {name: layer for name, layer in watched.layers.items() if name in layers}
    found = {name: OutputError() for name in candidates}
    if not found:
        return found
    batch: list[Inputs] = []
    handles = []
    for name, layer in candidates.items():
        # Made at each call and not kept: for all layers at once it would be a second model.
        planned = partial(_planned, measurement, name, dense[name], layers[name].rank, recipe)
        hook = _hook(layer, layers[name], planned, found[name], batch)
        handles.append(dense[name].register_forward_hook(hook))
    seen = 0
    try:
        with torch.no_grad():
            for inputs, _ in measurement.calibration:
                batch[:] = [inputs]
                measurement.forward(measurement.model, inputs)
                seen += batch_length(inputs)
                rows = [error.rows for error in found.values()]
                enough = seen >= samples or max(rows) >= ROWS
                if enough and (all(rows) or seen >= MOST):
                    break
    finally:
        for handle in handles:
            handle.remove()
    for name, error in list(found.items()):
        if error.rows == 0 and candidates[name].kind == "expert":
            del found[name]  # none of these few samples' tokens was routed to it
        elif error.rows == 0:
            raise LayerError(
                name,
                "no calibration sample reaches it, so nothing is known of its inputs. Give other "
                f"data, or exclude it (--exclude {name}).",
            )
    return found


def predicted_error(statistics: LayerStatistics, dense: nn.Module, lowrank: LowRank) -> float:
    """Return E‖(W − Ŵ) z + b − b̂‖² over the rows that were measured.

    With D = W − Ŵ it is tr(D Σ_T Dᵀ) + ‖D μ + b − b̂‖².
    """
    kind = LAYER_KINDS.get(lowrank.kind)
    covariance, mean = statistics.inputs.total_covariance, statistics.inputs.mean
    up, down = kind.factors(lowrank)
    difference = kind.matrix(dense).to(mean) - up.to(mean) @ down.to(mean)
    if statistics.counts is not None:  # rows are one-hot: E‖D z‖² over what was looked up
        shares = statistics.counts / statistics.counts.sum()
        return float(difference.square().sum(0) @ shares.to(difference))
    offset = difference @ mean
    for module, sign in ((dense, 1), (lowrank, -1)):
        bias = getattr(module, "bias", None)
        if bias is not None:
            offset = offset + sign * bias.detach().to(mean)
    return max(weighted_error(difference, covariance, None), 0.0) + float(offset.square().sum())


class Affine(NamedTuple):
    """Rows z become U V z + b: U [m, r], V [r, n], b [m] or None, in float32."""

    up: Tensor
    down: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        """Map [..., n] to [..., m]."""
        made = rows.to(self.up) @ self.down.T @ self.up.T
        return made if self.bias is None else made + self.bias


def _planned(
    measurement: Measurement, name: str, dense: nn.Module, rank: int, recipe: Recipe
) -> Affine:
    """Return the truncation that a plan asks for."""
    kind = LAYER_KINDS.get(measurement.candidates.layers[name].kind)
    truncation = measurement.decompositions.get(name, recipe)
    up, down = truncation.decomposition.factors(rank)
    bias = getattr(dense, "bias", None)
    if bias is not None:
        weight = kind.matrix(dense).to(up)
        bias = corrected_bias(bias.detach().to(up), weight, up, down, truncation.mean).float()
    return Affine(up.float(), down.float(), bias)


def _hook(
    layer: Candidate,
    lowrank: nn.Module,
    planned: Callable[[], Affine],
    error: OutputError,
    batch: list[Inputs],
) -> Callable[..., None]:
    kind = LAYER_KINDS.get(layer.kind)
    bias = getattr(lowrank, "bias", None)
    up, down = kind.factors(lowrank)
    factors = Affine(up.float(), down.float(), None if bias is None else bias.detach().float())

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        inputs = args[0].detach()
        samples = batch_length(batch[0])
        rows = kind.rows(module, inputs, samples)
        if rows is None:
            raise LayerError(layer.name, "its input rows do not belong to samples")
        expected = kind.output_rows(module, output.detach(), samples).float()
        actual = kind.output_rows(module, lowrank(inputs), samples).float()
        made, wanted = factors(rows), planned()(rows).to(expected)
        keep = real_rows(rows, kind.reached(module), token_mask(batch[0]))
        if keep is not None:
            expected, actual, made, wanted = (
                part[keep] for part in (expected, actual, made, wanted)
            )
        if not bool(torch.isfinite(actual).all()) or not bool(torch.isfinite(expected).all()):
            which = "it" if bool(torch.isfinite(expected).all()) else "the dense layer"
            raise LayerError(
                layer.name,
                f"{which} makes NaN or infinite outputs on the calibration data"
                + (f" in {output.dtype}: run it in float32" if output.dtype.itemsize < 4 else "")
                + f". Exclude it (--exclude {layer.name}), or look at its inputs.",
            )
        error.actual += _energy(expected - actual)
        error.planned += _energy(expected - wanted)
        error.deviation += _energy(actual - made)
        error.energy += _energy(expected) + _energy(made)
        error.rows += expected[..., 0].numel()

    return hook


def _energy(rows: Tensor) -> float:
    return float(rows.double().square().sum())


def _floor(dtype: torch.dtype) -> float:
    """Return the share of the energy that rounding may take.

    Devices may round the operands of products in float32 to 10 bits (TF32).
    """
    return 1e-2 if dtype.itemsize < 4 else 1e-5


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %" if whole > 0 else f"{part:.3g}"
