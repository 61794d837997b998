import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import compressor
from compressor.collapse.loss import LossGradient
from compressor.collapse.metrics import collapse, nearest_mean_mismatch
from compressor.collapse.moments import ClassMoments
from compressor.measuring import agreement, change, measured_layers, stationarity


def problem(samples=400, features=12, classes=4):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(samples) % classes
    means = 2 * torch.randn(classes, features, generator=generator)
    return means[labels] + torch.randn(samples, features, generator=generator), labels


def network(features=12, width=20, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def loss_of(model, inputs, labels, decay):
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    penalty = sum(weight.square().sum() for weight in weights)
    return functional.cross_entropy(model(inputs), labels) + decay / 2 * penalty


def figures(model, inputs, labels, method="fwsvd"):
    batches = list(zip(inputs.split(50), labels.split(50), strict=True))
    selection = batches[:1]
    found = compressor.measure(
        model, batches, selection=selection, method=method, include=["*"], classes=4
    )
    return {layer.name: layer for layer in measured_layers(found)}


def test_at_a_critical_point_the_gradient_opposes_the_weights():
    inputs, labels = problem()
    model, decay = network(), 3e-3
    untrained = figures(model, inputs, labels)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=400, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, inputs, labels, decay)
        loss.backward()
        return loss

    optimizer.step(closure)
    trained = figures(model, inputs, labels)
    for name, layer in trained.items():
        assert abs(untrained[name].stationarity) < 0.6
        assert layer.stationarity > 0.99
        assert layer.implied_decay == pytest.approx(decay, rel=0.05)


def test_stationarity_is_that_of_autograd():
    inputs, labels = problem()
    model = network()
    functional.cross_entropy(model(inputs), labels).backward()
    for name, layer in figures(model, inputs, labels).items():
        gradient = model.get_submodule(name).weight.grad
        weight = model.get_submodule(name).weight.detach()
        inner = float((weight * gradient).sum())
        expected = -inner / float(weight.norm() * gradient.norm())
        assert layer.stationarity == pytest.approx(expected, abs=1e-4)
        assert layer.implied_decay == pytest.approx(-inner / float(weight.norm()) ** 2, rel=1e-3)


def test_outputs_are_measured_as_if_they_had_been_rows_themselves():
    inputs, labels = problem()
    model = network().eval()
    found = figures(model, inputs, labels, method="whitened")["2"]
    with torch.no_grad():
        hidden = model[:3](inputs)
        predictions = model(inputs).argmax(1)
    moments = ClassMoments(4, hidden.shape[1])
    moments.update(hidden, labels)
    oracle = collapse(moments)
    assert found.nc1_quotient_output == pytest.approx(oracle.nc1_quotient, rel=1e-4)
    assert found.nc1_output == pytest.approx(oracle.nc1, rel=1e-3)
    assert found.nc1_kept_output == oracle.nc1_kept
    assert found.tcv_output == pytest.approx(oracle.tcv, rel=1e-4)
    assert found.tcv_relative_output == pytest.approx(oracle.tcv_relative, rel=1e-4)
    assert found.nearest_mean_mismatch_output == pytest.approx(
        nearest_mean_mismatch(hidden, labels, predictions), abs=1 / 400
    )
    assert found.stationarity is None
    assert found.implied_decay is None


def test_a_layer_of_zeros_has_no_stationarity():
    loss = LossGradient(mean=torch.ones(2, 3, dtype=torch.float64), rows=torch.ones(2))
    assert stationarity(torch.zeros(2, 3, dtype=torch.float64), loss) == (None, None)
    flat = LossGradient(mean=torch.zeros(2, 3, dtype=torch.float64), rows=torch.zeros(2))
    assert stationarity(torch.ones(2, 3, dtype=torch.float64), flat) == (None, 0.0)


def test_agreement_and_change_by_hand():
    before = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    after = torch.log(torch.tensor([[0.5, 0.5], [0.4, 0.6], [0.2, 0.8]]))
    alike, divergence = agreement(before, after)
    assert alike == pytest.approx(2 / 3)
    expected = (0.9 * math.log(0.9 / 0.4) + 0.1 * math.log(0.1 / 0.6)) / 3
    assert divergence == pytest.approx(expected, abs=1e-6)
    assert change(torch.eye(2), 3 * torch.eye(2)) == pytest.approx(2)
    assert change(torch.zeros(2, 2), torch.eye(2)) is None
