"""Bound and actual loss side by side: the actual one is what the outputs really lose."""

from __future__ import annotations

import pytest
import torch

from compressor.methods.outcome import layer_figures
from compressor.methods.recipe import Recipe
from tests.methods.measured import measured, trained

RANKS = {"a": 3, "b": 4}


def figures(ranks, compressed=None):
    return {figure.name: figure for figure in layer_figures(measured(), ranks, compressed)}


def test_energy_lost_is_that_of_the_centred_outputs():
    made, _ = measured().factorized(RANKS, Recipe())
    rows = torch.cat([x for x, _ in measured().calibration]).flatten(0, 1)
    with torch.no_grad():
        dense, small = trained().a(rows).double(), made.a(rows).double()
    lost = (dense - small).square().sum() / (dense - dense.mean(0)).square().sum()
    assert figures(RANKS, made)["a"].energy_lost == pytest.approx(float(lost), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 5, 10, 14])
def test_bound_holds_for_the_covariance_metric(rank):
    made, _ = measured().factorized({"a": rank}, Recipe())
    found = figures({"a": rank}, made)["a"]
    assert found.energy_lost <= found.bound + 1e-9
    assert found.parameters == rank * 64


def test_dense_layers_lose_nothing():
    made, _ = measured().factorized({"a": 24}, Recipe())
    found = figures({"a": 24}, made)["a"]
    assert (found.rank, found.bound, found.energy_lost) == (24, 0.0, 0.0)
    assert found.parameters == 24 * 40


def test_rank_above_break_even_is_told_as_full():
    assert figures({"a": 20, "b": 4})["a"].rank == 24


def test_without_statistics_there_is_no_collapse_to_tell():
    found = layer_figures(measured("svd"), RANKS)[0]
    assert found.nc1 is None
    assert found.bound is None
    assert found.energy_lost is None


@pytest.mark.parametrize("metric", ["identity", "covariance"])
def test_the_spectrum_tells_what_each_rank_loses(metric):
    recipe = Recipe(metric=metric)
    made, _ = measured().factorized(RANKS, recipe)
    found = {f.name: f for f in layer_figures(measured(), RANKS, made, recipe)}["a"].spectrum
    assert found.metric == metric
    assert found.ranks == tuple(range(1, 25))  # fewer than 64: every one
    weight = trained().a.weight.detach().double()
    if metric == "identity":
        expected = torch.linalg.svdvals(weight)
    else:
        moments = measured().layers["a"].inputs
        values, vectors = torch.linalg.eigh(moments.total_covariance)
        root = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T
        expected = torch.linalg.svdvals(weight @ root)
    shown = torch.tensor(found.values, dtype=torch.float64)
    torch.testing.assert_close(shown, expected / expected[0], rtol=1e-3, atol=1e-6)


def test_a_plan_alone_has_no_spectrum():
    assert figures(RANKS)["a"].spectrum is None
