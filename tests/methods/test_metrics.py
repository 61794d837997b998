"""The metrics' energies are the losses they claim, and layer weights follow their formulas."""

from __future__ import annotations

import pytest
import torch

from compressor.collapse.metrics import nc1_quotient
from compressor.methods.decompose import decompose_on_smaller_side, weighted_error
from compressor.methods.layer_weights import LAYER_WEIGHTS
from compressor.methods.metrics import (
    DRAWN_FAR,
    DRAWN_NEAR,
    METRICS,
    SMALLEST_ALPHA,
)
from compressor.methods.recipe import Recipe
from tests.methods.measured import measured, trained

LAYERS = ("a", "b")


def truncate(metric, name, **recipe):
    weight = trained().get_submodule(name).weight.detach().double()
    found = measured().layers[name]
    return weight, found, METRICS.get(metric).truncate(weight, found, Recipe(**recipe))


def assert_energies(weight, truncation, inputs, outputs=None):
    """Check that each tail is the error that keeping so many directions leaves."""
    tail = truncation.decomposition.tail()
    for rank in (0, 3, 10):
        up, down = truncation.decomposition.factors(rank)
        lost = weighted_error(weight - up @ down, inputs, outputs)
        assert lost == pytest.approx(float(tail[rank]), rel=1e-4, abs=1e-5 * float(tail[0]))


@pytest.mark.parametrize("name", LAYERS)
def test_identity(name):
    weight, _, found = truncate("identity", name)
    assert_energies(weight, found, None)
    assert found.mean is None


@pytest.mark.parametrize("name", LAYERS)
def test_second_moment_is_uncentred_and_corrects_no_bias(name):
    weight, statistics, found = truncate("second_moment", name)
    mean = statistics.inputs.mean
    assert_energies(weight, found, statistics.inputs.total_covariance + torch.outer(mean, mean))
    assert found.mean is None


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0, "nc1"])
@pytest.mark.parametrize("name", LAYERS)
def test_class_aware_covariance(name, alpha):
    weight, statistics, found = truncate("covariance", name, alpha=alpha)
    moments = statistics.inputs
    if alpha == "nc1":
        quotient = nc1_quotient(moments)
        alpha = max(quotient / (1 + quotient), SMALLEST_ALPHA)
    expected = moments.between_covariance + alpha * moments.within_covariance
    if name == "a":
        assert torch.equal(found.mean, moments.mean)
    else:  # without a bias the mean stays in the metric
        assert found.mean is None
        expected = expected + torch.outer(moments.mean, moments.mean)
    assert_energies(weight, found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_fisher_energy_of_everything_is_its_quadratic_form(name):
    _, statistics, found = truncate("fisher", name)
    fisher = statistics.fisher
    total = float((fisher.near * fisher.pulled).sum()) / fisher.energy
    assert float(found.decomposition.tail()[0]) == pytest.approx(total, rel=1e-4)
    assert (found.mean is None) == (name == "b")


def test_layer_weights():
    statistics = measured().layers["a"]
    quotient = nc1_quotient(statistics.outputs)
    weigh = {name: LAYER_WEIGHTS.get(name) for name in LAYER_WEIGHTS.names()}
    plain, half = Recipe(), Recipe(beta=0.5)
    assert weigh["one"](statistics, 4.0, half) == 1.0
    assert weigh["relative"](statistics, 4.0, plain) == 0.25
    assert weigh["root"](statistics, 4.0, plain) == 0.5
    assert weigh["guided"](statistics, 4.0, plain) == 1.0
    assert weigh["guided"](statistics, 4.0, half) == pytest.approx(quotient**0.5)
    assert weigh["relative"](statistics, 4.0, half) == pytest.approx(quotient**0.5 / 4)
    for name in ("relative", "root"):
        assert weigh[name](statistics, 0.0, half) == 0.0


def test_guidance_without_statistics_is_refused_not_dropped():
    assert LAYER_WEIGHTS.get("relative")(None, 4.0, Recipe()) == 0.25
    with pytest.raises(ValueError, match="needs statistics"):
        LAYER_WEIGHTS.get("relative")(None, 4.0, Recipe(beta=0.5))


@pytest.mark.parametrize("name", ["a", "b"])
def test_mixed_fisher_is_halfway_and_keeps_the_total(name):
    weight, statistics, found = truncate("mixed_fisher", name)
    fisher, rows = statistics.fisher, statistics.fisher.by_row
    near = fisher.near / fisher.energy + rows.near / rows.energy
    pulled = fisher.pulled / fisher.energy + rows.pulled / rows.energy
    expected = decompose_on_smaller_side(weight, near, pulled).energies
    total = float((fisher.near * fisher.pulled).sum()) / fisher.energy
    energies = found.decomposition.energies
    torch.testing.assert_close(energies / energies.sum(), expected / expected.sum())
    assert float(energies.sum()) == pytest.approx(total, rel=1e-4)
    up, down = found.decomposition.factors(min(weight.shape))
    torch.testing.assert_close(up @ down, weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_shrunk_fisher_draws_both_factors_towards_the_identity(name):
    weight, statistics, found = truncate("shrunk_fisher", name)
    fisher = statistics.fisher
    rows, columns = weight.shape
    side, other = min(rows, columns), max(rows, columns)
    through = weight @ weight.T if rows <= columns else weight.T @ weight
    near = fisher.near + DRAWN_NEAR * fisher.energy / side * torch.eye(side).double()
    far = (1 - DRAWN_FAR) * fisher.pulled / fisher.energy + DRAWN_FAR * through / other
    expected = float(torch.trace(near @ far))
    assert float(found.decomposition.tail()[0]) == pytest.approx(expected, rel=1e-5)
