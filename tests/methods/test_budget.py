"""Reading budgets, and refusing what cannot be reached."""

from __future__ import annotations

import re

import pytest

from compressor.errors import BudgetError, UnknownNameError, UsageError
from compressor.layers.candidates import Candidate, Candidates
from compressor.methods.budget import Budget, affordable, parse_budget, smallest


def candidates(*shapes, outside=100):
    layers = {str(i): Candidate(str(i), "linear", s, True, str(i), 1) for i, s in enumerate(shapes)}
    return Candidates(layers, {}, sum(m * n for m, n in shapes) + outside)


@pytest.mark.parametrize(
    ("text", "kind", "share"),
    [
        ("layers=50%", "layers", 0.5),
        ("params=0.8", "params", 0.8),
        (" layers = 12.5 % ", "layers", 0.125),
        ("layers=100%", "layers", 1.0),
        ("layers=1", "layers", 1.0),
        ("layers=.25", "layers", 0.25),
    ],
)
def test_read(text, kind, share):
    assert parse_budget(text) == Budget(kind, share)


@pytest.mark.parametrize("text", ["abc", "layers", "layers=", "layers=half", "layers=-5%", "50%"])
def test_unreadable(text):
    with pytest.raises(UsageError, match="Expected kind=share, for instance layers=50%") as caught:
        parse_budget(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["layers=0", "layers=0%", "layers=150%", "params=50", "layers=1.1"]
)
def test_shares_that_can_never_work(text):
    with pytest.raises(UsageError, match="expected more than 0 and at most 100 %"):
        parse_budget(text)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown budget 'layer'\. Did you mean 'layers'"):
        parse_budget("layer=50%")


def test_written_as_a_person_would():
    assert parse_budget(str(Budget("layers", 0.4))) == Budget("layers", 0.4)


def test_weights_granted():
    found = candidates((10, 10), (20, 10), outside=100)
    assert affordable([parse_budget("layers=50%")], found) == 150
    assert affordable([parse_budget("params=80%")], found) == 220  # 320 − 100 outside
    both = [parse_budget("params=80%"), parse_budget("layers=50%")]
    assert affordable(both, found) == 150
    assert affordable([parse_budget("layers=70%")], candidates((1000, 1000))) == 700_000


def test_no_budget():
    with pytest.raises(UsageError, match="No budget was given"):
        affordable([], candidates((10, 10)))


@pytest.mark.parametrize("kind", ["layers", "params"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_unreachable_names_a_share_that_is(kind, multiple):
    found = candidates((33, 47), (64, 31), outside=5000)
    with pytest.raises(BudgetError, match="cannot be met") as caught:
        affordable([parse_budget(f"{kind}=1%")], found, multiple=multiple)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "Outside the 2 layers" in message
    assert "5,000 of" in message
    assert ("multiples of 4" in message) == (multiple == 4)
    share = re.search(r"smallest reachable share is ([0-9.]+) %", message)[1]
    reached = affordable([parse_budget(f"{kind}={share}%")], found, multiple=multiple)
    assert reached >= smallest(found, multiple=multiple)
    with pytest.raises(BudgetError):
        affordable([parse_budget(f"{kind}={float(share) - 0.02}%")], found, multiple=multiple)


def test_smallest_counts_dense_what_no_multiple_makes_smaller():
    found = candidates((64, 64), (8, 8))
    assert smallest(found) == 128 + 16
    assert smallest(found, multiple=8) == 8 * 128 + 64


@pytest.mark.parametrize("text", ["layers=50%", "params=50%", "layers=100%"])
def test_nothing_to_factorize(text):
    with pytest.raises(BudgetError, match="no layer of this model can be factorized"):
        affordable([parse_budget(text)], candidates())
