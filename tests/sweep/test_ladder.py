import pytest
import torch
from torch import nn

from compressor.errors import UsageError
from compressor.layers.search import find_candidates
from compressor.methods.budget import granted, parse_budget
from compressor.methods.subject import Subject
from compressor.sweep.ladder import ladder


@pytest.fixture(scope="module")
def subject():
    net = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    return Subject(net, find_candidates(net, torch.randn(3, 64)), lambda n: torch.randn(n, 64))


def test_ten_points_of_layers(subject):
    assert ladder("layers", 10, subject) == tuple(f"layers={share}%" for share in range(95, 0, -10))


@pytest.mark.parametrize("kind", ["layers", "params", "size", "flops"])
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("points", [1, 3, 40])
def test_every_budget_can_be_reached(kind, points, multiple, subject):
    budgets = ladder(kind, points, subject, multiple=multiple)
    assert len(set(budgets)) == points
    shares = [parse_budget(budget).amount for budget in budgets]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] < 1
    for budget in budgets:
        granted([parse_budget(budget)], subject, multiple=multiple)


def test_unknown_kinds_are_refused(subject):
    with pytest.raises(UsageError, match="Unknown budget 'speed'"):
        ladder("speed", 5, subject)
