"""Reading budgets, and refusing what cannot be reached."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from compressor.errors import BudgetError, UnknownNameError, UsageError
from compressor.layers.candidates import Candidate, Candidates
from compressor.methods.budget import BUDGETS, Budget, granted, parse_budget, smallest
from compressor.methods.subject import Subject


def subject(*shapes, outside=100):
    layers = {str(i): Candidate(str(i), "linear", s, True, str(i), 1) for i, s in enumerate(shapes)}
    found = Candidates(layers, {}, sum(m * n for m, n in shapes) + outside)
    model = nn.Sequential(*(nn.Linear(n, m) for m, n in shapes))
    return Subject(model, found, lambda samples: torch.ones(samples, shapes[0][1]))


def limit(texts, found, **words):
    return granted([parse_budget(text) for text in texts], found, **words).constraints.limits


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("layers=50%", Budget("layers", 0.5)),
        ("params=0.8", Budget("params", 0.8)),
        (" layers = 12.5 % ", Budget("layers", 0.125)),
        ("layers=100%", Budget("layers", 1.0)),
        ("layers=1", Budget("layers", 1.0)),
        ("layers=.25", Budget("layers", 0.25)),
        ("params=20M", Budget("params", 20e6, relative=False)),
        ("size=40MB", Budget("size", 40e6, relative=False)),
        ("size=40 MiB", Budget("size", 40 * 2**20, relative=False)),
        ("size=1.5e6B", Budget("size", 1.5e6, relative=False)),
        ("size=50%", Budget("size", 0.5)),
        ("flops=300M", Budget("flops", 300e6, relative=False)),
        ("flops=0.3", Budget("flops", 0.3)),
    ],
)
def test_read(text, budget):
    assert parse_budget(text) == budget
    again = parse_budget(str(budget))
    assert again.amount == pytest.approx(budget.amount, rel=1e-3)
    assert (again.kind, again.relative) == (budget.kind, budget.relative)


@pytest.mark.parametrize("name", BUDGETS.names())
def test_the_examples_of_every_kind_are_read(name):
    for example in BUDGETS.get(name).examples:
        assert parse_budget(example).kind == name


@pytest.mark.parametrize("text", ["abc", "layers", "layers=", "layers=half", "layers=-5%", "50%"])
def test_unreadable(text):
    with pytest.raises(UsageError, match="Expected kind=share, for instance layers=50%") as caught:
        parse_budget(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers=3MB", "'MB' is no unit of layers. Expected one of %"),
        ("size=3 bananas", "'bananas' is no unit of size. Expected one of B, kB"),
        ("flops=3GB", "no unit of flops"),
        ("layers=50%@32", "leave out @32"),
    ],
)
def test_units_and_conditions_that_mean_nothing(text, message):
    with pytest.raises(UsageError, match=message):
        parse_budget(text)


@pytest.mark.parametrize(
    "text",
    [
        "layers=0",
        "layers=0%",
        "layers=150%",
        "params=150%",
        "params=50",
        "size=50",
        "size=0",
        "flops=50",
    ],
)
def test_shares_that_can_never_work(text):
    with pytest.raises(UsageError, match="expected more than 0 and at most 100 %"):
        parse_budget(text)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown budget 'layer'\. Did you mean 'layers'"):
        parse_budget("layer=50%")


def test_weights_granted():
    found = subject((10, 10), (20, 10), outside=100)
    assert limit(["layers=50%"], found) == 150
    assert limit(["params=80%"], found) == 220  # 320 − 100 outside
    assert limit(["params=0.32k"], found) == 220
    assert limit(["params=80%", "layers=50%"], found).tolist() == [220, 150]
    assert limit(["layers=70%"], subject((1000, 1000))) == 700_000


def test_bytes_granted_are_those_of_the_storage_types():
    found = subject((64, 48), (32, 64))
    half = Subject(
        found.model,
        found.candidates,
        found.inputs,
        {"0.weight": torch.float16, "1.weight": torch.float16},
    )
    full = BUDGETS.get("size").constraint(parse_budget("size=1MB"), found)
    small = BUDGETS.get("size").constraint(parse_budget("size=1MB"), half)
    assert full.costs["0"][-1] == 4 * 64 * 48
    assert small.costs["0"][-1] == 2 * 64 * 48
    assert full.fixed > 4 * 96  # the biases, and headers
    assert full.dense == 4 * (64 * 48 + 32 * 64 + 96)
    assert full.costs["0"][5] - 4 * 5 * 112 == pytest.approx(140, abs=20)  # one header more


def test_flops_granted_follow_the_positions_of_each_layer():
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, stride=2))
    layers = {
        "0": Candidate("0", "conv2d", (32, 144), True, "0", 64),
        "1": Candidate("1", "conv2d", (32, 288), True, "1", 9),
    }
    found = Subject(
        model, Candidates(layers, {}, 10**5), lambda samples: torch.ones(samples, 16, 8, 8)
    )
    made = BUDGETS.get("flops").constraint(parse_budget("flops=50%"), found)
    assert made.costs["0"][-1] == 2 * 64 * 32 * 144
    assert made.costs["1"][4] == pytest.approx(2 * 9 * 4 * (32 + 288))
    assert made.fixed == 0
    assert made.limit == pytest.approx((made.costs["0"][-1] + made.costs["1"][-1]) / 2)


def test_no_budget():
    with pytest.raises(UsageError, match="No budget was given"):
        granted([], subject((10, 10)))


@pytest.mark.parametrize("kind", ["layers", "params", "size", "flops"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_unreachable_names_a_share_that_is(kind, multiple):
    found = subject((33, 47), (64, 33), outside=5000)
    with pytest.raises(BudgetError, match="cannot be met") as caught:
        limit([f"{kind}=1%"], found, multiple=multiple)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "Outside the 2 layers" in message
    assert "5,000 of" in message
    assert ("multiples of 4" in message) == (multiple == 4)
    share = re.search(r"smallest reachable share is ([0-9.]+) %", message)[1]
    assert limit([f"{kind}={share}%"], found, multiple=multiple) > 0
    with pytest.raises(BudgetError):
        limit([f"{kind}={float(share) - 0.02}%"], found, multiple=multiple)


@pytest.mark.parametrize("kind", ["params", "size", "flops"])
@pytest.mark.parametrize("rows", [64, 3011, 12343])
def test_an_absolute_budget_that_cannot_be_reached_names_an_amount_that_can(kind, rows):
    found = subject((rows, 64), (64, rows))
    with pytest.raises(BudgetError) as caught:
        limit([f"{kind}=0.001k{'B' * (kind == 'size')}"], found)
    told = re.search(r"smallest that can be reached is ([0-9.]+ ?[kM]?B?)\.", str(caught.value))
    assert told is not None
    amount = told[1].replace(" ", "")
    if amount.isdecimal():  # an amount below a thousand has no unit
        amount = f"{float(amount) / 1000}k"
    assert limit([f"{kind}={amount}"], found) > 0


def test_best_effort_grants_the_nearest_and_says_so():
    found = subject((64, 64), (64, 64))
    allowed = granted([parse_budget("layers=1%")], found, best_effort=True)
    assert allowed.constraints.limits == 2 * 128
    assert "layers=1% cannot be met" in allowed.unmet[0]


def test_smallest_counts_dense_what_no_multiple_makes_smaller():
    found = subject((64, 64), (8, 8)).candidates
    assert smallest(found) == 128 + 16
    assert smallest(found, multiple=8) == 8 * 128 + 64


@pytest.mark.parametrize("text", ["layers=50%", "params=50%", "layers=100%"])
def test_nothing_to_factorize(text):
    empty = Subject(nn.Identity(), Candidates({}, {}, 100), lambda samples: torch.ones(samples, 1))
    with pytest.raises(BudgetError, match="no layer of this model can be factorized"):
        granted([parse_budget(text)], empty)
