"""AIMET's greedy search on toys whose answer can be read off, and on a small network."""

import itertools

import numpy as np
import pytest
import torch

from compressor.layers.candidates import Candidate
from compressor.methods.allocation import Options, options
from compressor.methods.baselines.aimet import (
    MOST_EVALUATIONS,
    greedy,
    head,
    interpolated,
    probes,
)
from compressor.progress import Progress
from compressor.stages import measure, plan


def toy(*costs):
    return Options(
        ranks=np.arange(1, len(costs) + 1),
        weights=np.array(costs, dtype=float),
        costs=np.array([costs], dtype=float),
        losses=np.zeros(len(costs)),
    )


LAYERS = {"a": toy(1, 2, 3, 4), "b": toy(1, 2, 3, 4)}
SCORES = {"a": np.array([0.5, 0.88, 0.89, 0.9]), "b": np.array([0.2, 0.3, 0.85, 0.9])}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (8, {"a": 4, "b": 4}),
        (5, {"a": 2, "b": 3}),  # 0.85 asked of both
        (3, {"a": 1, "b": 2}),  # 0.3 asked of both
        (2, {"a": 1, "b": 1}),
    ],
)
def test_the_same_accuracy_is_asked_of_both_layers(budget, expected):
    assert greedy(LAYERS, SCORES, budget) == expected


def test_a_dip_does_not_stop_the_search_for_the_cheapest_option():
    scores = {"a": np.array([0.8, 0.6, 0.7, 0.9]), "b": SCORES["b"]}
    assert greedy(LAYERS, scores, 4)["a"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_higher_common_accuracy_is_within_the_budget(seed):
    generator = np.random.default_rng(seed)
    layers = {name: toy(*np.cumsum(generator.integers(1, 5, 4))) for name in "abc"}
    scores = {name: np.sort(generator.random(4)) for name in "abc"}
    least = sum(option.weights[0] for option in layers.values())
    budget = least + generator.random() * (sum(o.weights[-1] for o in layers.values()) - least)
    best = 0.0
    for trial in itertools.product(range(4), repeat=3):
        if sum(layers[n].weights[i] for n, i in zip("abc", trial, strict=True)) <= budget:
            best = max(best, min(scores[n][i] for n, i in zip("abc", trial, strict=True)))
    ranks = greedy(layers, scores, budget)
    assert sum(layers[n].weights[r - 1] for n, r in ranks.items()) <= budget
    assert min(scores[n][r - 1] for n, r in ranks.items()) == pytest.approx(best)


def test_ties_share_what_is_left_of_the_budget():
    flat = {name: np.full(4, 0.9) for name in LAYERS}
    assert greedy(LAYERS, flat, 6) == {"a": 3, "b": 3}


def test_scores_are_interpolated_in_weights():
    layer = Candidate("l", "linear", (40, 40), True, "l", 1.0)
    choice = options(layer, np.zeros(41))
    found = interpolated(choice, {4: 0.4, 12: 0.8}, 0.9)
    at = dict(zip(choice.ranks.tolist(), found.tolist(), strict=True))
    assert at[4] == 0.4
    assert at[12] == 0.8
    assert at[8] == pytest.approx(0.6)
    assert at[1] == pytest.approx(0.1)  # towards 0 where nothing is kept
    assert at[40] == 0.9
    assert at[19] == pytest.approx(0.8 + 0.1 * (19 * 80 - 12 * 80) / (1600 - 12 * 80))


def test_nine_ratios_a_layer_and_a_bounded_number_in_all():
    layer = Candidate("l", "linear", (400, 400), True, "l", 1.0)
    choice = options(layer, np.zeros(401))
    few = probes(layer, choice, 4)
    assert [rank * 800 / 160000 for rank in few] == pytest.approx(np.arange(1, 10) / 10)
    for layers in (50, 150, 399):
        assert 1 <= len(probes(layer, choice, layers)) * layers <= MOST_EVALUATIONS


def test_a_layer_without_low_ranks_is_not_measured():
    layer = Candidate("l", "linear", (16, 16), True, "l", 1.0)
    assert probes(layer, options(layer, np.zeros(17), multiple=8), 1) == []


class Notes(Progress):
    def __init__(self):
        self.notes, self.totals = [], []

    def track(self, items, *, description, total=None):
        self.totals.append((description, total))
        yield from items

    def note(self, text):
        self.notes.append(text)


def test_the_layer_that_matters_keeps_more(net, batches):
    with torch.no_grad():  # the second layer passes what counts through one direction
        net.second.weight.copy_(torch.outer(net.second.weight[:, 0], net.second.weight[0]))
    labelled = [(rows, net(rows).argmax(1)) for rows, _ in batches]
    found = measure(net, labelled, selection=labelled, method="aimet")
    watched = Notes()
    ranks = plan(found, "layers=50%", method="aimet", progress=watched).ranks
    layers = found.candidates.layers
    share = {
        name: layers[name].cost(rank) / layers[name].parameters for name, rank in ranks.items()
    }
    assert share["second"] < min(share["first"], share["third"])
    kept = sum(layers[name].cost(rank) for name, rank in ranks.items())
    assert kept <= 0.5 * found.candidates.layer_parameters
    assert dict(watched.totals)["probe layers"] <= 27
    assert watched.notes == []


def test_without_labels_or_selection_data_it_says_so_and_goes_on(net, batches):
    unlabelled = [(rows, None) for rows, _ in batches[:3]]
    found = measure(net, unlabelled, method="aimet")
    assert found.selection is None
    watched = Notes()
    made = plan(found, "layers=40%", method="aimet", progress=watched)
    assert any("calibration data" in note for note in watched.notes)
    assert max(made.ranks.values()) >= 1


def test_accuracy_is_measured_on_so_many_predictions_and_not_windows():
    images = [(torch.zeros(100, 3), torch.zeros(100)) for _ in range(4)]
    assert [len(inputs) for inputs, _ in head(images)] == [100, 100, 56]
    assert [len(inputs) for inputs, _ in head([(x, None) for x, _ in images])] == [100, 100, 56]
    labels = torch.full((2, 101), -100)
    labels[0, :100] = labels[1, 1:60] = 7  # a whole window, and one of which little is predicted
    windows = [({"input_ids": torch.zeros(2, 101, dtype=torch.long)}, labels) for _ in range(4)]
    kept = head(windows)
    assert [len(inputs["input_ids"]) for inputs, _ in kept] == [2, 1]
    assert [len(labels) for _, labels in kept] == [2, 1]
    assert sum(int((labels >= 0).sum()) for _, labels in kept) == 259
    assert [len(labels) for _, labels in head(windows[:1])] == [2]
