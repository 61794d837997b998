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
