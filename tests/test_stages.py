"""measure, plan and factorize on models in memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from compressor.errors import BudgetError, DataError, UnknownNameError, UsageError
from compressor.stages import factorize, measure, plan
from tests.methods.measured import CLASSES, Net, batches, measured, trained


@pytest.mark.parametrize("form", ["list", "iterator", "tuple inputs", "dict inputs", "loader"])
def test_batches_of_every_form_measure_alike(form):
    given = batches()
    if form == "iterator":
        given = iter(given)
    elif form == "tuple inputs":
        given = [((x,), y) for x, y in given]
    elif form == "dict inputs":
        given = [({"x": x}, y) for x, y in given]
    elif form == "loader":
        xs, ys = (torch.cat(part) for part in zip(*given, strict=True))
        given = DataLoader(TensorDataset(xs, ys), batch_size=16)
    found = measure(trained(), given, method="whitened")
    assert found.nc1_quotients() == pytest.approx(measured("whitened").nc1_quotients())


def test_clusters_stand_in_for_labels():
    found = measure(trained(), [(x, None) for x, _ in batches()])
    assert found.statistics.clustered
    assert found.statistics.layers["a"].fisher is not None
    assert set(found.statistics.labels.tolist()) == set(range(CLASSES))
    small = factorize(trained(), plan(found, "layers=50%"))
    assert small(batches(1)[0][0]).shape == (16, CLASSES)


def test_measuring_leaves_the_model_but_for_its_mode():
    model = Net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure(model, batches())
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_data_that_cannot_be_measured():
    one = [(x, torch.zeros_like(y)) for x, y in batches()]
    with pytest.raises(DataError, match="one class only"):
        measure(trained(), one)
    with pytest.raises(DataError, match="outside 0…3"):
        measure(trained(), [(x, y + 1) for x, y in batches()])
    with pytest.raises(DataError, match="no batch was given"):
        measure(trained(), [])


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'whitened'"):
        measure(trained(), batches(), method="whitend")
    with pytest.raises(UnknownNameError, match="Did you mean 'svd'"):
        plan(measured(), "layers=50%", method="svdd")
    with pytest.raises(UsageError, match="matches no layer"):
        measure(trained(), batches(), exclude=["encoder.*"])


def test_a_measurement_that_lacks_what_the_method_needs():
    with pytest.raises(UsageError, match=r"needs a forward pass .* measure\(..., method='nc1'\)"):
        plan(measured("svd"), "layers=50%")


def test_plan_tells_where_it_comes_from():
    made = plan(measured(), ["layers=50%", "params=0.9"], rank_multiple=4)
    assert made.method == "nc1"
    assert made.budget == ("layers=50%", "params=0.9")
    assert made.gradients
    assert made.layers["a"].nc1_quotient == measured().nc1_quotients()["a"]
    assert made.layers["a"].shape == (40, 24)
    assert all(rank % 4 == 0 for rank in made.ranks.values())
    small = factorize(trained(), made)
    dense = sum(p.numel() for p in trained().parameters())
    assert sum(p.numel() for p in small.parameters()) <= 0.9 * dense


def test_budgets_that_cannot_be_met():
    with pytest.raises(BudgetError, match="smallest reachable share") as caught:
        plan(measured(), "layers=1%")
    assert caught.value.exit_code == 3
    with pytest.raises(BudgetError, match="multiples of 16"):
        plan(measured(), "layers=30%", rank_multiple=16)
