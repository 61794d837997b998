"""The speed table, and what a latency budget makes of it; no test depends on real speed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import BudgetError, UsageError
from compressor.evaluation.speed_table import LayerSpeed, grid, liked_multiple, speed_table
from compressor.forward import Forward
from compressor.layers.candidates import Candidate, Candidates
from compressor.layers.search import find_candidates
from compressor.methods.allocation import knapsack, options
from compressor.methods.budget import BUDGETS, granted, parse_budget
from compressor.methods.subject import Subject
from compressor.report.speed import speed_sentence
from compressor.schema import LatencyFigures, LayerTime, SpeedFigures


def layer(name, m, n):
    return Candidate(name, "linear", (m, n), True, name, 1.0)


def test_between_ranks_it_is_linear_and_never_falls():
    speed = LayerSpeed(dense=10.0, ranks=(8, 16, 24), factors=(2.0, 6.0, 5.0))
    found = speed.at_every_rank(64, 31)
    assert found[8] == 2.0
    assert found[12] == pytest.approx(3.5)  # 16 can do in 5 what 24 does
    assert found[16] == found[24] == found[31] == 5.0
    assert found[4] == 2.0
    assert (found[32:] == 10.0).all()


def test_grid_holds_liked_ranks_below_break_even():
    assert grid(layer("a", 64, 64), 8) == (8, 16, 24)
    assert len(grid(layer("a", 1000, 1000), 8)) == 6
    assert grid(layer("a", 20, 20), 16) == (1, 3, 4, 6, 7, 9)  # no multiple of 16 fits
    assert liked_multiple(torch.device("cuda")) == 16
    assert liked_multiple(torch.device("cpu")) == 8


class Twice(nn.Module):
    """Calls one layer twice, and two of the same shape once each."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(self.a(x)))))


def test_every_layer_has_times_and_calls_count():
    model = Twice().eval()
    inputs = torch.randn(4, 32)
    layers = find_candidates(model, inputs).layers
    table = speed_table(model, layers, inputs, forward=Forward())
    assert table.keys() == layers.keys()
    assert all(speed.dense > 0 and min(speed.factors) > 0 for speed in table.values())
    assert table["b"] == table["c"]  # of one shape: timed once
    assert table["a"].dense == 2 * table["b"].dense


class Convolved(nn.Module):
    """Two convolutions that have a second form, a 1×1 and a linear layer that have none."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.c, self.d = nn.Conv2d(32, 32, 1), nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.d(self.c(self.b(self.a(x))).mean((2, 3))))


def test_what_other_forms_leave_as_it_is_is_timed_once(monkeypatch):
    model = Convolved().eval()
    candidates = find_candidates(model, torch.randn(2, 3, 8, 8), conv_form="auto")
    assert candidates.folded_forms().keys() == {"a", "b"}
    timed = []

    def count(dense, layer, *rest):
        timed.append((layer.name, layer.kind))
        return LayerSpeed(float(len(timed)), (8,), (1.0,))

    monkeypatch.setattr("compressor.evaluation.speed_table._timed", count)
    subject = Subject(model, candidates, lambda n: torch.randn(n, 3, 8, 8))
    spatial = candidates.in_forms(candidates.folded_forms())
    mixed = candidates.in_forms({"a": spatial.layers["a"].kind})
    tables = [subject.of(c).speed_table(2) for c in (candidates.thinnest(), candidates, spatial)]
    assert len(timed) == len(set(timed)) == 2 * 2 + 2
    assert tables[0]["d"] == tables[1]["d"] == tables[2]["d"]
    last = subject.of(mixed).speed_table(2)
    assert len(timed) == 6
    assert (last["a"], last["b"]) == (tables[2]["a"], tables[1]["b"])
    subject.speed_table(3)  # of another batch size nothing is known
    assert len(timed) == 10


def timed_subject():
    """Return a subject whose times are given: layer a gains by factors, layer b does not."""
    layers = {"a": layer("a", 64, 64), "b": layer("b", 64, 64)}
    found = Subject(nn.Sequential(), Candidates(layers, {}, 10_000), lambda n: torch.ones(n, 64))
    found._milliseconds[32] = 30.0
    found._tables[32] = {
        "a": LayerSpeed(10.0, (8, 16, 24), (2.0, 4.0, 6.0)),
        "b": LayerSpeed(10.0, (8, 16, 24), (11.0, 12.0, 13.0)),
    }
    return found


def test_a_layer_whose_factors_are_slower_stays_dense():
    subject = timed_subject()
    made = granted([parse_budget("latency=80%@32")], subject)
    assert made.multiple == 8
    assert made.constraints.members[0].fixed == pytest.approx(10.0)
    tail = np.append(np.cumsum(np.ones(64))[::-1], 0.0)
    choices = {
        name: options(found, tail, made.constraints, multiple=8)
        for name, found in subject.candidates.layers.items()
    }
    assert choices["b"].ranks.tolist() == [64]
    assert knapsack(choices, made.constraints.limits) == {"a": 16, "b": 64}


def test_what_no_rank_can_reach_is_refused_with_what_can_be():
    with pytest.raises(BudgetError, match=r"smallest reachable share is 73\.34 %"):
        granted([parse_budget("latency=50%@32")], timed_subject())
    with pytest.raises(BudgetError, match=r"smallest that can be reached is 22 ms"):
        granted([parse_budget("latency=15ms@32")], timed_subject())


def test_batch_sizes_and_units():
    assert parse_budget("latency=1.5s@8").amount == 1500
    assert BUDGETS.get("latency").show(12.5) == "12.5 ms"
    with pytest.raises(UsageError, match="no batch size"):
        parse_budget("latency=50%@many")
    with pytest.raises(UsageError, match="at most 100 %"):
        parse_budget("latency=5")


def speed(dense, compressed, layers=()):
    figures = LatencyFigures(
        batch=1, rounds=9, dense=dense, compressed=compressed, dense_memory=9, compressed_memory=8
    )
    return SpeedFigures(runtime="eager", threads=2, input="64", batches=(figures,), layers=layers)


def test_the_sentence_says_how_fast_and_why_not():
    assert "2.00 times as fast as dense at batch 1" in speed_sentence(speed(4.0, 2.0))
    assert "not faster" not in speed_sentence(speed(4.0, 2.0))
    slow = (LayerTime(name="b", rank=8, dense=1.0, compressed=1.5),)
    assert "longer than one in b (1.5×)" in speed_sentence(speed(2.0, 2.1, slow))
    assert "so little work" in speed_sentence(speed(2.0, 2.1))
    assert speed_sentence(None) is None
