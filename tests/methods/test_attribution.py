"""Shares of the measured KL: they add up to it, and are the path integral taken numerically."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compressor.evaluation.loop import evaluate
from compressor.forward import Forward
from compressor.layers.kinds import LAYER_KINDS
from compressor.methods.attribution import attributed_divergence
from compressor.methods.constraints import weights_within
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import allocate, measured_ranks
from compressor.stages import measure
from tests.methods.measured import CLASSES, batches, measured

WEIGHTS = (24 * 40 + 40 * 32) // 4


def limit(found):
    return weights_within(found.candidates.layers, WEIGHTS)


class Smooth(nn.Module):
    """Two hidden layers without a kink, the second without a bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(24, 40), nn.Linear(40, 32, bias=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(3 * torch.tanh(self.b(torch.tanh(self.a(x)))).mean(1))


@pytest.fixture(scope="module")
def models():
    """A dense classifier in float64 and a truncated copy."""
    torch.manual_seed(0)
    found = measure(Smooth().eval(), batches(4))
    ranks = allocate(found, Recipe(metric="fisher"), limit(found), multiple=1)
    small, _ = found.factorized(ranks, Recipe(metric="fisher"))
    pair = [copy.deepcopy(model).double() for model in (found.model, small)]
    return pair[0], pair[1], found.candidates.layers


def doubles():
    return [(x.double(), labels) for x, labels in batches(2)]


def divergence(dense, model):
    logits = evaluate(dense, doubles()).logits
    return evaluate(model, doubles(), dense_logits=logits).kl_to_dense


def test_shares_add_up_to_the_divergence(models):
    dense, small, layers = models
    shares = attributed_divergence(dense, small, layers, doubles(), forward=Forward(), points=8)
    assert shares.keys() == layers.keys()
    assert sum(shares.values()) == pytest.approx(divergence(dense, small), rel=1e-4)
    few = attributed_divergence(dense, small, layers, doubles(), forward=Forward())
    assert sum(few.values()) == pytest.approx(divergence(dense, small), rel=0.1)


def test_each_share_is_the_integral_of_finite_differences(models):
    dense, small, layers = models
    found = attributed_divergence(dense, small, layers, doubles(), forward=Forward(), points=8)
    parts = [(name, part) for name in layers for part in ("weight", "bias")]
    parts = [(n, p) for n, p in parts if getattr(getattr(dense, n), p) is not None]
    steps = {}
    for name, part in parts:
        goal = LAYER_KINDS.get(layers[name].kind).dense(getattr(small, name))
        steps[name, part] = getattr(goal, part) - getattr(getattr(dense, name), part)

    def at(shares):
        moved = copy.deepcopy(dense)
        with torch.no_grad():
            for (name, part), step in steps.items():
                getattr(getattr(moved, name), part).add_(shares[name] * step)
        return divergence(dense, moved)

    count, width = 40, 1e-4
    for name in layers:
        total = 0.0
        for index in range(count):
            middle = (index + 0.5) / count
            ends = []
            for shift in (-width, width):
                ends.append(at({n: middle + (shift if n == name else 0) for n in layers}))
            total += (ends[1] - ends[0]) / (2 * width) / count
        assert found[name] == pytest.approx(total, rel=0.02)


def test_an_uncompressed_model_has_no_shares(models):
    dense, _, layers = models
    assert attributed_divergence(dense, dense, layers, doubles(), forward=Forward()) == {}


def test_leaves_both_models_as_they_were(models):
    dense, small, layers = models
    before = [copy.deepcopy(model.state_dict()) for model in (dense, small)]
    attributed_divergence(dense, small, layers, doubles(), forward=Forward())
    for model, state in zip((dense, small), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_layer_that_loses_more_than_predicted_keeps_more(monkeypatch):
    found = measured()
    recipe = Recipe(metric="identity")  # its flat spectra let ranks move
    ranks = allocate(found, recipe, limit(found), multiple=1)
    tails = {name: found.decompositions.get(name, recipe).decomposition.tail() for name in ranks}

    def shares(*args, **kwargs):
        return {"a": 9 * float(tails["a"][ranks["a"]]), "b": float(tails["b"][ranks["b"]])}

    monkeypatch.setattr("compressor.methods.measurement.attributed_divergence", shares)
    again = measured_ranks(found, ranks, recipe, constraints=limit(found), multiple=1)
    assert again["a"] > ranks["a"]
    layers = found.candidates.layers
    assert sum(layers[name].cost(rank) for name, rank in again.items()) <= WEIGHTS
