import pytest
import torch
from torch import nn

from compressor.errors import UsageError
from compressor.layers.candidates import find_candidates
from compressor.methods.budget import affordable, parse_budget
from compressor.sweep.ladder import ladder


@pytest.fixture(scope="module")
def candidates():
    net = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    return find_candidates(net, torch.randn(3, 64))


def test_ten_points_of_layers(candidates):
    assert ladder("layers", 10, candidates) == tuple(
        f"layers={share}%" for share in range(95, 0, -10)
    )


@pytest.mark.parametrize("kind", ["layers", "params"])
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("points", [1, 3, 40])
def test_every_budget_can_be_reached(kind, points, multiple, candidates):
    budgets = ladder(kind, points, candidates, multiple=multiple)
    assert len(set(budgets)) == points
    shares = [parse_budget(budget).share for budget in budgets]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] < 1
    for budget in budgets:
        affordable([parse_budget(budget)], candidates, multiple=multiple)


def test_other_kinds_are_refused(candidates):
    with pytest.raises(UsageError, match="--budgets"):
        ladder("latency", 5, candidates)
