"""From ranks to a factorized copy, with bias correction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.errors import LayerError
from compressor.layers.lowrank import LowRankLinear
from compressor.layers.search import find_candidates
from compressor.methods.factorize import Decompositions, corrected_bias, factorized
from compressor.methods.recipe import Recipe
from tests.methods.measured import Net, batches, measured, trained

COVARIANCE, FISHER = Recipe(metric="covariance"), Recipe(metric="fisher")


def small(ranks, recipe=COVARIANCE):
    found = measured()
    layers = found.candidates.layers
    return factorized(found.model, layers, ranks, recipe, found.decompositions)


def test_dense_model_is_untouched_and_shared():
    dense = trained()
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    made = small({"a": 3, "b": 32})
    assert isinstance(made.a, LowRankLinear)
    assert made.a.weight.shape == (40, 3)
    assert type(made.b) is nn.Linear  # above break-even
    assert made.b.weight is dense.b.weight
    assert made.head.weight is dense.head.weight
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert not any(module.training for module in made.modules())


@pytest.mark.parametrize("recipe", [COVARIANCE, Recipe(metric="covariance", alpha=0.3)])
def test_bias_correction_makes_mean_outputs_equal(recipe):
    made, dense = small({"a": 2}, recipe), trained()
    rows = torch.cat([x for x, _ in measured().calibration]).flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(made.a(rows).mean(0), dense.a(rows).mean(0))
        uncorrected = small({"a": 2}, Recipe(metric="identity")).a(rows).mean(0)
        assert (uncorrected - dense.a(rows).mean(0)).abs().max() > 1e-2


def test_layer_without_a_bias_gets_none():
    assert small({"b": 2}).b.bias is None


@pytest.mark.parametrize("metric", ["identity", "second_moment", "covariance", "fisher"])
def test_metric_is_the_best_in_its_own_measure_on_real_outputs(metric):
    """Each output-energy metric beats plain SVD on the calibration outputs of the layer itself."""
    rows = torch.cat([x for x, _ in measured().calibration]).flatten(0, 1)
    with torch.no_grad():
        target = trained().a(rows)
        lost = float((small({"a": 4}, Recipe(metric=metric)).a(rows) - target).square().sum())
        plain = float((small({"a": 4}, Recipe(metric="identity")).a(rows) - target).square().sum())
        best = float((small({"a": 4}, COVARIANCE).a(rows) - target).square().sum())
    assert lost >= best * (1 - 1e-5)
    if metric in ("second_moment", "covariance"):
        assert lost < plain


def test_corrected_bias_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    weight, up, down, mean, bias = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((4, 6), (4, 2), (2, 6), (6,), (4,))
    )
    expected = bias + (weight - up @ down) @ mean
    torch.testing.assert_close(corrected_bias(bias, weight, up, down, mean), expected)
    assert corrected_bias(bias, weight, up, down, None) is bias


def test_decompositions_are_kept():
    found = measured().decompositions
    assert found.get("a", COVARIANCE) is found.get("a", Recipe(layer_weight="relative"))
    assert found.get("a", COVARIANCE) is not found.get("a", Recipe(alpha=0.5))


def test_missing_statistics_and_nan_weights_name_the_layer():
    model = Net().eval()
    layers = find_candidates(model, batches(1)[0][0]).layers
    with pytest.raises(LayerError, match=r"Layer a: it cannot be decomposed: .* needs statistics"):
        Decompositions(model, layers, {}).get("a", COVARIANCE)
    with torch.no_grad():
        model.b.weight[0] = torch.nan
    with pytest.raises(LayerError, match=r"Layer b: .* the weight holds NaN or Inf"):
        Decompositions(model, layers, {}).get("b", Recipe(metric="identity"))
    forward = measured("whitened").layers
    with pytest.raises(LayerError, match=r"Layer a: .* gradients, which were not gathered"):
        Decompositions(trained(), layers, forward).get("a", FISHER)


def test_factors_of_every_rank_are_there_for_who_asks():
    found = measured()
    layer = found.candidates.layers["a"]
    whole = found.decompositions.of_every_rank("a", FISHER).decomposition
    kept = found.decompositions.get("a", FISHER).decomposition
    assert whole.up.shape[1] == layer.full_rank > layer.break_even_rank == kept.up.shape[1]
    assert kept.up.dtype == torch.float32
    assert torch.equal(whole.up[:, : layer.break_even_rank].float(), kept.up)
    assert torch.equal(whole.energies, kept.energies)
