"""measure, plan and factorize on models in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from compressor.errors import BudgetError, DataError, ModelError, UnknownNameError, UsageError
from compressor.methods.measurement import default_device
from compressor.stages import count, factorize, measure, plan, probe_inputs, replayable
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


def test_a_shuffling_loader_is_kept_in_one_order():
    xs, ys = (torch.cat(part) for part in zip(*batches(), strict=True))
    data = TensorDataset(xs, ys)
    shuffled = replayable(DataLoader(data, batch_size=16, shuffle=True))
    first, again = ([labels for _, labels in shuffled] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    loader = DataLoader(data, batch_size=16)
    assert replayable(loader) is loader
    found = measure(trained(), batches(), selection=DataLoader(data, batch_size=16, shuffle=True))
    assert found.divergence(trained()) == 0.0


def test_number_of_batches():
    class Samples:
        batch_size = 4

        def __len__(self):
            return 9

    xs = torch.zeros(9, 2)
    assert count([1, 2, 3]) == 3
    assert count(Samples()) == 3
    assert count(DataLoader(TensorDataset(xs), batch_size=4)) == 3
    assert count(iter([1, 2])) is None


def test_probe_is_a_few_samples_of_the_first_batch_that_has_some():
    x = torch.arange(10.0)[:, None]
    device = default_device(trained())
    assert probe_inputs([(x[:0], None), (x, None)], device).tolist() == [[0.0], [1.0], [2.0]]
    first, second = probe_inputs([((x, x + 1), None)], device)
    assert (first + 1 == second).all()
    assert probe_inputs([({"ids": x}, None)], device)["ids"].shape == (3, 1)
    with pytest.raises(DataError, match="no batch was given"):
        probe_inputs([], device)


def test_data_that_cannot_be_measured():
    one = [(x, torch.zeros_like(y)) for x, y in batches()]
    with pytest.raises(DataError, match="one class only"):
        measure(trained(), one)
    with pytest.raises(DataError, match="outside 0…3"):
        measure(trained(), [(x, y + 1) for x, y in batches()])
    with pytest.raises(DataError, match="no batch was given"):
        measure(trained(), [])


def test_models_without_candidates_are_refused_with_reasons():
    model = nn.Sequential(nn.Linear(24, 8), nn.Flatten(), nn.Linear(24, 4))
    with pytest.raises(ModelError, match=r"1 × tiny \(8×24\); 1 × classifier head"):
        measure(model, batches())
    with pytest.raises(ModelError, match="has no linear layer or convolution"):
        measure(nn.Sequential(nn.Flatten()), batches())


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
