"""The default method: the best recipe of a grid that always holds unguided ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from compressor.cache import Cache
from compressor.methods import measurement as measurement_module
from compressor.methods.constraints import weights_within
from compressor.methods.guided import FORWARD_GRID, METRIC_GRID, WEIGHT_GRID, Guided, metric_grid
from compressor.methods.judging import SHARES
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import allocate, label
from compressor.progress import SILENT
from compressor.stages import measure, plan
from tests import language
from tests.methods.measured import measured

WEIGHTS = (24 * 40 + 40 * 32) // 2


def half():
    return weights_within(measured().candidates.layers, WEIGHTS)


WEIGHTED = tuple(Recipe(metric="fisher", **weights) for weights in WEIGHT_GRID)


@pytest.mark.parametrize("grid", [FORWARD_GRID, METRIC_GRID + WEIGHTED])
def test_grids_hold_guided_and_unguided_recipes_with_labels_of_their_own(grid):
    assert {recipe.guided for recipe in grid} == {False, True}
    assert len({label(recipe) for recipe in grid}) == len(grid)


@pytest.mark.parametrize("gradients", [False, True])
def test_takes_the_least_kl_on_selection_data(gradients):
    found = measured(gradients=gradients)
    decision = Guided().decide(found, half(), multiple=1, progress=SILENT)
    first = [choice for choice in decision.selection if choice.made_from is None]
    made = {choice.label for choice in decision.selection} - {choice.label for choice in first}
    assert any("refitted" in name for name in made) == gradients
    assert len({choice.label for choice in decision.selection}) == len(decision.selection)
    if gradients:
        metrics = first[: len(METRIC_GRID)]
        best = METRIC_GRID[min(range(len(metrics)), key=lambda index: metrics[index].kl)].metric
        tried = [*METRIC_GRID, *(Recipe(metric=best, **weights) for weights in WEIGHT_GRID)]
    else:
        tried = FORWARD_GRID
    assert [choice.label for choice in first] == list(dict.fromkeys(map(label, tried)))
    chosen = [choice for choice in decision.selection if choice.chosen]
    assert len(chosen) == 1
    assert chosen[0].kl == min(choice.kl for choice in decision.selection)
    assert chosen[0].label == label(decision.recipe)
    made, _ = found.factorized(decision.ranks, decision.recipe)
    assert found.divergence(made) == pytest.approx(chosen[0].kl)
    found.keep({}, decision.recipe, made)  # what was kept is forgotten: it is made anew
    again, _ = found.factorized(decision.ranks, decision.recipe)
    assert found.divergence(again) == pytest.approx(chosen[0].kl)


def test_without_selection_data_the_first_recipe_is_taken():
    found = dataclasses.replace(measured(), selection=None)
    decision = Guided().decide(found, half(), multiple=1, progress=SILENT)
    assert decision.recipe == METRIC_GRID[0]
    assert decision.selection == ()


def test_needs():
    assert Guided().needs(gradients=True) == "gradients"
    assert Guided().needs(gradients=False) == "forward"


def test_guidance_moves_weights_to_layers_that_have_not_collapsed():
    from compressor.collapse.metrics import nc1_quotient

    found = measured()
    quotients = {name: nc1_quotient(s.outputs) for name, s in found.layers.items()}
    less = min(quotients, key=quotients.get)
    plain, strong = (
        allocate(found, Recipe(layer_weight="relative", beta=beta), half(), multiple=1)
        for beta in (0.0, 20.0)
    )
    assert strong[less] < plain[less]


def test_allocation_from_weights_alone():
    found = measured("svd")
    ranks = allocate(found, Recipe(metric="identity", layer_weight="relative"), half(), multiple=1)
    layers = found.candidates.layers
    assert sum(layers[name].cost(rank) for name, rank in ranks.items()) <= WEIGHTS


def test_tokens_are_rows_already():
    model = language.build("llama")
    ids = torch.randint(6, 23, (4, 2, 12), generator=torch.Generator().manual_seed(0))
    found = measure(model, [({"input_ids": batch}, batch.roll(-1, 1)) for batch in ids])
    limits = weights_within(found.candidates.layers, found.candidates.layer_parameters // 2)
    mixed, plain = (
        allocate(found, Recipe(metric=metric), limits, multiple=1)
        for metric in ("mixed_fisher", "fisher")
    )
    assert mixed == plain
    assert [recipe.metric for recipe in metric_grid(found)] == ["shrunk_fisher"]
    assert metric_grid(measured()) == METRIC_GRID


def test_what_is_not_judged_to_the_end_would_not_have_been_chosen(monkeypatch):
    found = measured()
    decision = Guided().decide(found, half(), multiple=1, progress=SILENT)
    judged = Measurement.judged
    monkeypatch.setattr(
        Measurement, "judged", lambda self, ranks, recipe, **_: judged(self, ranks, recipe)
    )
    whole = Guided().decide(found, half(), multiple=1, progress=SILENT)
    assert decision.ranks == whole.ranks
    assert decision.recipe == whole.recipe
    assert any(choice.lower_bound for choice in decision.selection)
    for choice, exact in zip(decision.selection, whole.selection, strict=True):
        assert choice.label == exact.label
        assert choice.kl <= exact.kl * (1 + 1e-5)
        if not choice.lower_bound:
            assert choice.kl == pytest.approx(exact.kl, rel=1e-5)
            assert choice.accuracy == exact.accuracy
    for guided in (False, True):  # the best of either kind is known exactly
        kind = [c for c in whole.selection if c.guided == guided and c.made_from is None]
        best = min(kind, key=lambda choice: choice.kl).label
        assert not next(c for c in decision.selection if c.label == best).lower_bound


def test_always_the_most_promising_is_judged_on_more_and_all_are_told_in_order(monkeypatch):
    found = dataclasses.replace(measured(), _kept={}, _begun={})
    bounds, order = {}, []
    least = Measurement.least_divergence
    judged = Measurement.judged

    def noted(self, ranks, recipe, *, share=SHARES[0]):
        name = label(recipe)
        if share > SHARES[0]:  # of all that are not judged yet
            assert bounds[name] == min(bounds.values())
        else:
            order.append(name)
        bounds[name] = least(self, ranks, recipe, share=share)
        return bounds[name]

    def told(self, ranks, recipe, **options):
        bounds.pop(label(recipe), None)
        return judged(self, ranks, recipe, **options)

    monkeypatch.setattr(Measurement, "least_divergence", noted)
    monkeypatch.setattr(Measurement, "judged", told)
    decision = Guided().decide(found, half(), multiple=1, progress=SILENT)
    assert [choice.label for choice in decision.selection][:-1] == order
    assert not bounds
    assert not found._begun


def test_what_takes_long_to_make_is_made_once(monkeypatch):
    dense = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    model = nn.Sequential(dense, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    torch.manual_seed(0)
    data = [(torch.randn(16, 3, 8, 8), torch.arange(16) % 4) for _ in range(4)]
    found = measure(model, data, selection=data[2:])
    made = []
    correct = measurement_module.corrected_norms
    monkeypatch.setattr(
        measurement_module,
        "corrected_norms",
        lambda *args, **kwargs: made.append(1) or correct(*args, **kwargs),
    )
    decision = plan(found, "layers=60%").selection
    assert len(made) == sum(choice.made_from is None for choice in decision)


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_selection_that_was_stopped_anywhere_comes_to_the_same(
    gradients, kept, tmp_path, monkeypatch
):
    plain = measured(gradients=gradients)
    budget = weights_within(measured().candidates.layers, int(2 * kept * WEIGHTS))
    expected = Guided().decide(plain, budget, multiple=1, progress=SILENT)
    names = ("least_divergence", "judged")
    real = {name: getattr(Measurement, name) for name in names}
    calls = 0

    def stopping(name, last):
        def call(self, *args, **options):
            nonlocal calls
            if calls == last:
                raise StoppedError
            calls += 1
            return real[name](self, *args, **options)

        return call

    number = 0
    while True:
        cache = Cache(tmp_path / f"{gradients}-{number}", {})
        calls = 0
        for name in names:
            monkeypatch.setattr(Measurement, name, stopping(name, number))
        fresh = dataclasses.replace(plain, cache=cache, _kept={}, _begun={})
        try:
            Guided().decide(fresh, budget, multiple=1, progress=SILENT)
        except StoppedError:
            number += 1
        else:
            break
        for name in names:
            monkeypatch.setattr(Measurement, name, real[name])
        again = dataclasses.replace(plain, cache=cache, _kept={}, _begun={})
        decision = Guided().decide(again, budget, multiple=1, progress=SILENT)
        assert decision == expected, f"stopped before call {number}"
    assert number > len(FORWARD_GRID)
