"""Odd weights, inputs and modules: each is either right or refused with the layer's name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import compressor
from compressor.errors import CompressorError, LayerError, ModelError
from compressor.methods.measurement import Measurement
from compressor.methods.output_error import check_output_errors, output_errors, predicted_error
from compressor.methods.recipe import Recipe

METHODS = ("nc1", "svd", "svd-llm", "asvd", "fwsvd", "zs-svd", "drone")
WIDTH = 24


def network(classes: int = 4, width: int = WIDTH) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes)
    )


def batches(inputs: Tensor, labels: Tensor, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def data(samples: int = 128, classes: int = 4, width: int = WIDTH) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % classes
    centres = torch.randn(classes, width, generator=generator)
    return batches(centres[labels] + torch.randn(samples, width, generator=generator), labels)


def squeezed(
    model: nn.Module, calibration: list[tuple[Tensor, Tensor]], *, method: str = "nc1",
    budget: str = "layers=60%", **options: object,
) -> nn.Module:  # fmt: skip
    """Compress, and see that the result is finite and loses no more than was predicted."""
    measurement = compressor.measure(model, calibration, method=method, **options)
    small = compressor.factorize(model, compressor.plan(measurement, budget, method=method))
    for inputs, _ in calibration:
        assert torch.isfinite(small(inputs)).all()
    return small


def agree(model: nn.Module, small: nn.Module, inputs: Tensor, tolerance: float = 1e-3) -> None:
    with torch.no_grad():
        expected, found = model(inputs), small(inputs)
    assert torch.allclose(found, expected, atol=tolerance * float(expected.abs().max()))


# Weights.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["nc1", "svd"])
def test_nan_or_inf_in_weights_names_the_layer(value, method):
    model = network()
    with torch.no_grad():
        model[2].weight[3, 3] = value
    with pytest.raises(LayerError, match=r"Layer 2: .*NaN or"):
        squeezed(model, data(), method=method)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_inf_in_activations_names_the_layer(value):
    calibration = data()
    calibration[1][0][5, 2] = value
    with pytest.raises(LayerError, match=r"Layer 0: 1 of 32 rows hold NaN or Inf"):
        squeezed(network(), calibration)
    with pytest.raises(LayerError, match=r"Layer 0: .*NaN or infinite outputs"):
        squeezed(network(), calibration[1:2], method="svd")


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_layer_stays_zero(method):
    model = network()
    nn.init.zeros_(model[2].weight)
    small = squeezed(model, data(), method=method)
    agree(model[2], small[2], torch.randn(5, 32))


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_low_rank_is_kept_exactly(method):
    model = network()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(32, 4) @ torch.randn(4, WIDTH) / 4)
        model[2].weight.copy_(torch.randn(32, 4) @ torch.randn(4, 32) / 8)
    calibration = data()
    small = squeezed(model, calibration, method=method)
    agree(model, small, calibration[0][0])


# Inputs.


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_low_rank(method):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(128, 3, generator=generator) @ torch.randn(3, WIDTH, generator=generator)
    calibration = batches(inputs, torch.arange(128) % 4)
    model = network()
    small = squeezed(model, calibration, method=method, budget="layers=70%")
    if method in ("nc1", "svd-llm", "drone"):
        agree(model[0], small[0], inputs)


@pytest.mark.parametrize("method", METHODS)
def test_constant_inputs(method):
    calibration = batches(torch.ones(64, WIDTH) * 3, torch.arange(64) % 4)
    model = network()
    small = squeezed(model, calibration, method=method)
    if method in ("nc1", "drone"):  # they correct the bias by the mean of what was cut
        agree(model, small, calibration[0][0])


@pytest.mark.parametrize("method", METHODS)
def test_dead_units(method):
    model = network()
    with torch.no_grad():
        model[0].weight[:20] = 0
        model[0].bias[:20] = -1
    squeezed(model, data(), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_covariance_of_condition_1e16(method):
    inputs = torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(3))
    inputs *= torch.logspace(4, -4, WIDTH)
    calibration = batches(inputs, torch.arange(256) % 4)
    small = squeezed(network(), calibration, method=method, budget="layers=70%")
    assert small is not None


@pytest.mark.parametrize("method", METHODS)
def test_fewer_rows_than_dimensions(method):
    calibration = data(samples=8, classes=4)
    model = network()
    squeezed(model, calibration, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_of_each_class(method):
    calibration = data(samples=16, classes=16)
    squeezed(network(classes=16), calibration, method=method)


def test_ten_thousand_classes():
    calibration = data(samples=512, classes=10_000, width=WIDTH)
    squeezed(network(classes=10_000), calibration, method="nc1", gradients=False)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_duplicates(method):
    (inputs, _), *_ = data()
    calibration = batches(inputs[:1].repeat(64, 1), torch.arange(64) % 2)
    squeezed(network(), calibration, method=method)


def test_an_overflow_in_half_precision_names_the_layer():
    model = network().half()
    with torch.no_grad():
        model[0].weight.fill_(60.0)
        model[2].weight.fill_(200.0)
    calibration = [(inputs.half().abs() * 10, labels) for inputs, labels in data()]
    for method in ("svd", "nc1"):
        with pytest.raises(LayerError, match=r"Layer 2: .*(NaN|infinite)"):
            squeezed(model, calibration, method=method)


# Modules.


class Parts(nn.Module):
    """A network whose parts are called in unusual ways.

    Args:
        layer: Called ``times`` times, one after another.
        times: How often.
    """

    def __init__(self, layer: nn.Module, times: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, 32)
        self.layer = layer
        self.spare = nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)
        self.times = times

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs))
        for _ in range(self.times):
            hidden = torch.relu(self.layer(hidden))
        return self.head(hidden)


def measured(model: nn.Module, **options: object) -> Measurement:
    return compressor.measure(model, data(), **options)


def test_a_layer_that_is_never_reached_stays_dense():
    found = measured(Parts(nn.Linear(32, 32)))
    assert "never called" in found.candidates.left_dense["spare"]


class Sometimes(Parts):
    """Calls ``layer`` on small batches alone, as the probe is one."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs))
        return self.head(self.layer(hidden) if len(inputs) < 10 else hidden)


@pytest.mark.parametrize("method", ["nc1", "svd"])
def test_a_layer_that_no_calibration_sample_reaches_is_refused(method):
    with pytest.raises(LayerError, match="Layer layer: no calibration sample reaches it"):
        squeezed(Sometimes(nn.Linear(32, 32)), data(), method=method)


def test_a_layer_that_later_samples_reach_is_looked_at_there():
    first, *rest = data()
    small = [part for inputs, labels in rest for part in batches(inputs, labels, 8)]
    found, made_of, recipe = made(Sometimes(nn.Linear(32, 32)), "svd", [first, *small])
    errors = output_errors(found, made_of, recipe)
    assert (errors["first"].rows, errors["layer"].rows) == (40, 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_called_several_times(method):
    model = Parts(nn.Linear(32, 32), times=3)
    found, small, recipe = made(model, method)
    errors = output_errors(found, small, recipe)
    assert errors["layer"].rows == 3 * errors["first"].rows


def test_a_module_under_two_names_stays_dense_and_shared():
    shared = nn.Linear(32, 32)
    model = nn.Sequential(nn.Linear(WIDTH, 32), shared, nn.ReLU(), shared, nn.Linear(32, 4))
    small = squeezed(model, data())
    assert small[1] is small[3]
    assert torch.equal(small[1].weight, shared.weight)


def test_train_mode_and_dropout_change_nothing():
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 32),
            nn.Linear(32, 4),
        )  # fmt: skip

    results = [squeezed(build().train(mode), data()) for mode in (True, False)]
    inputs = data()[0][0]
    assert not results[0].training
    assert torch.equal(results[0](inputs), results[1](inputs))


def test_frozen_parameters_are_compressed_like_others():
    model, frozen = network(), network().requires_grad_(False)
    inputs = data()[0][0]
    assert torch.equal(squeezed(model, data())(inputs), squeezed(frozen, data())(inputs))
    assert not any(p.requires_grad for p in frozen.parameters())


def doubling(module: nn.Module, args: object, output: Tensor) -> Tensor:
    del module, args
    return 2 * output


@pytest.mark.parametrize(
    "dress",
    [
        lambda layer: layer.register_forward_hook(doubling),
        lambda layer: layer.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
        lambda layer: setattr(layer, "forward", lambda x: 2 * nn.Linear.forward(layer, x)),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["hook", "pre-hook", "forward", "weight_norm", "spectral_norm", "old", "pruned"],
)
def test_a_layer_that_computes_more_than_its_weight_stays_dense(dress):
    model = network().eval()
    dress(model[2])
    model.eval()
    inputs = data()[0][0]
    before = model(inputs)
    small = squeezed(model, data(), budget="layers=80%")
    assert type(small[2]) is type(model[2])
    assert torch.equal(model(inputs), before)
    agree(model[2], small[2], torch.randn(3, 32))


# The comparison of actual and predicted error itself.


def made(
    model: nn.Module,
    method: str = "nc1",
    calibration: list[tuple[Tensor, Tensor]] | None = None,
) -> tuple[Measurement, nn.Module, Recipe]:
    found = compressor.measure(model, calibration or data(), method=method)
    plan = compressor.plan(found, "layers=60%", method=method)
    return found, compressor.factorize(model, plan), plan.recipe


@pytest.mark.parametrize("method", ["nc1", "svd"])
def test_factors_in_the_wrong_order_are_found(method):
    found, small, recipe = made(network(), method)
    with torch.no_grad():
        small[2].down.weight.copy_(small[2].down.weight.flip(0))
        small[2].weight.mul_(10)
    with pytest.raises(LayerError, match=r"Layer 2: it loses .* were predicted by its truncation"):
        check_output_errors(found, small, recipe)


def test_a_module_that_is_off_its_factors_is_found():
    found, small, recipe = made(network())
    small[2].register_forward_hook(doubling)
    with pytest.raises(LayerError, match="Layer 2: its outputs are not those of its factors"):
        check_output_errors(found, small, recipe)


def test_statistics_of_other_inputs_are_found():
    model = network()
    with torch.no_grad():
        model[0].bias.zero_()
    found = compressor.measure(model, [(inputs * 1e-3, labels) for inputs, labels in data()])
    plan = compressor.plan(found, "layers=60%")
    small = compressor.factorize(model, plan)
    swapped = dataclasses.replace(found, calibration=data())
    with pytest.raises(LayerError, match=r"Layer \d: it loses .* were predicted by its stat"):
        check_output_errors(swapped, small, plan.recipe)


def test_what_is_predicted_is_what_is_lost():
    found, small, recipe = made(network())
    modules, layers = dict(found.model.named_modules()), dict(small.named_modules())
    for name, error in output_errors(found, small, recipe, samples=10**6).items():
        predicted = predicted_error(found.layers[name], modules[name], layers[name])
        assert error.actual / error.rows == pytest.approx(predicted, rel=1e-3)
        assert error.actual == pytest.approx(error.planned, rel=1e-3)
        assert error.deviation < 1e-6 * error.energy


def test_errors_are_those_a_person_can_act_on():
    with pytest.raises(ModelError, match="No layer of the model can be factorized"):
        squeezed(nn.Sequential(nn.Linear(WIDTH, 4)), data())
    with pytest.raises(CompressorError, match="one class"):
        squeezed(network(), batches(torch.randn(64, WIDTH), torch.zeros(64, dtype=torch.int64)))
