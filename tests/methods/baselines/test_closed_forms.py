"""Baselines with a closed form, against that form written out, and against brute force."""

import pytest
import torch

from compressor.collapse.fisher import KroneckerFisher
from compressor.collapse.loss import LossGradient
from compressor.errors import UsageError
from compressor.methods.method import METHODS
from compressor.methods.metrics import METRICS
from compressor.stages import factorize, measure, plan

RANK = 5


def layer_inputs(model, batches, name):
    rows = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, args, output: rows.append(args[0].detach())
    )
    for inputs, _ in batches:
        model(inputs)
    handle.remove()
    return torch.cat(rows)


def truncated(measurement, method, name, rank=RANK):
    """Return Ŵ of a layer under a method's metric."""
    recipe = METHODS.get(method).recipe
    found = measurement.decompositions.get(name, recipe)
    up, down = found.decomposition.factors(rank)
    return up @ down


def best_of(matrix, rank=RANK):
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.fixture
def all_batches(batches):
    return batches, batches[:2]


def measured(net, all_batches, method):
    calibration, selection = all_batches
    return measure(net, calibration, selection=selection, method=method)


@pytest.mark.parametrize("layer", ["first", "second"])
def test_svd_is_eckart_and_youngs(net, all_batches, layer):
    found = truncated(measured(net, all_batches, "svd"), "svd", layer)
    torch.testing.assert_close(found, best_of(net.get_submodule(layer).weight.detach()))


@pytest.mark.parametrize("layer", ["first", "second"])
def test_asvd_scales_columns_by_the_root_of_their_mean_size(net, all_batches, layer):
    found = truncated(measured(net, all_batches, "asvd"), "asvd", layer)
    scale = layer_inputs(net, all_batches[0], layer).abs().mean(0).sqrt()
    expected = best_of(net.get_submodule(layer).weight.detach() * scale) / scale
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["svd-llm", "whitened"])
@pytest.mark.parametrize("layer", ["first", "second"])
def test_svd_llm_truncates_after_cholesky_whitening(net, all_batches, layer, method):
    found = truncated(measured(net, all_batches, method), method, layer)
    rows = layer_inputs(net, all_batches[0], layer)
    moment = rows.T @ rows / len(rows)
    root = torch.linalg.cholesky(moment + 1e-9 * torch.eye(len(moment)) * moment.trace())
    whitened = best_of(net.get_submodule(layer).weight.detach() @ root)
    expected = whitened @ torch.linalg.inv(root)
    # Where columns are the smaller side our metric is damped by 1e-6 of its mean eigenvalue.
    torch.testing.assert_close(rows @ found.T, rows @ expected.T, rtol=1e-3, atol=1e-3)


def test_drone_is_the_best_affine_map_of_rank_r(net, all_batches):
    """PCA of the centred outputs: nothing of that rank comes nearer on the calibration data."""
    measurement = measured(net, all_batches, "drone")
    made = plan(measurement, "layers=45%", method="drone")
    small = factorize(net, made)
    rows = layer_inputs(net, all_batches[0], "first")
    exact = net.first(rows)
    centred = exact - exact.mean(0)
    rank = made.ranks["first"]
    assert rank <= measurement.candidates.layers["first"].break_even_rank
    best = (torch.linalg.svdvals(centred)[rank:] ** 2).sum() / len(rows)
    reached = (small.first(rows) - exact).square().sum() / len(rows)
    torch.testing.assert_close(reached, best, rtol=1e-4, atol=1e-9)


def test_drone_equals_svd_llm_in_its_own_metric_where_means_vanish(net, batches):
    paired = [(torch.cat([rows, -rows]), torch.cat([labels, labels])) for rows, labels in batches]
    measurement = measured(net, (paired, paired[:1]), "drone")
    assert measurement.layers["first"].inputs.mean.abs().max() < 1e-12
    torch.testing.assert_close(
        truncated(measurement, "drone", "first"), truncated(measurement, "svd-llm", "first")
    )


def test_drone_loses_less_than_svd_llm_where_means_are_large(net, batches):
    shifted = [(rows + 10, labels) for rows, labels in batches]
    measurement = measured(net, (shifted, shifted[:1]), "drone")
    rows = layer_inputs(net, shifted, "first")
    weight, mean = net.first.weight.detach(), rows.mean(0)
    centred = (rows - mean) @ (weight - truncated(measurement, "drone", "first")).T
    plain = rows @ (weight - truncated(measurement, "svd-llm", "first")).T
    assert centred.square().sum() < plain.square().sum() * 0.99


def weighted_least_squares(weight, rows, rank, starts=4, rounds=400):
    """Minimise Σ_i rows_i ‖(W − U V)_i‖² by alternating least squares from random starts."""
    generator = torch.Generator().manual_seed(0)
    best = float("inf")
    root = rows.sqrt()[:, None]
    for _ in range(starts):
        down = torch.randn(rank, weight.shape[1], generator=generator, dtype=torch.float64)
        for _ in range(rounds):
            up = torch.linalg.lstsq(down.T, weight.T).solution.T
            down = torch.linalg.lstsq(root * up, root * weight).solution
        best = min(best, float((rows[:, None] * (weight - up @ down).square()).sum()))
    return best


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_fwsvd_reaches_the_optimum_that_brute_force_finds(shape):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64)
    rows = torch.rand(shape[0], generator=generator, dtype=torch.float64) ** 3 + 1e-3
    statistics = Statistics(loss=LossGradient(mean=weight, rows=rows))
    recipe = METHODS.get("fwsvd").recipe
    found = METRICS.get(recipe.metric).truncate(weight, statistics, recipe).decomposition
    up, down = found.factors(3)
    reached = float((rows[:, None] * (weight - up @ down).square()).sum())
    assert reached == pytest.approx(weighted_least_squares(weight, rows, 3), rel=1e-6)
    assert reached == pytest.approx(float(found.tail()[3]), rel=1e-4)
    plain = float((rows[:, None] * (weight - best_of(weight, 3)).square()).sum())
    assert reached < 0.95 * plain


class Statistics:
    """A layer's statistics with one thing known."""

    def __init__(self, **known):
        self.__dict__.update(known)


class Layer:
    has_bias = False


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_gfwsvd_is_the_two_sided_truncation_by_cholesky_factors(shape):
    generator = torch.Generator().manual_seed(5)
    rows, columns = shape
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    near_rows = torch.randn(rows, 20, generator=generator, dtype=torch.float64)
    near_columns = torch.randn(columns, 20, generator=generator, dtype=torch.float64)
    a, b = near_rows @ near_rows.T, near_columns @ near_columns.T
    wide = rows <= columns
    fisher = KroneckerFisher(
        near=a if wide else b,
        pulled=weight @ b @ weight.T if wide else weight.T @ a @ weight,
        energy=1.0,
        rows=a.diagonal(),
        centre=torch.zeros(columns, dtype=torch.float64),
    )
    recipe = METHODS.get("gfwsvd").recipe
    truncation = METRICS.get(recipe.metric).truncate(
        weight, Statistics(fisher=fisher, layer=Layer), recipe
    )
    up, down = truncation.decomposition.factors(3)
    left, right = torch.linalg.cholesky(a), torch.linalg.cholesky(b)
    middle = best_of(left.T @ weight @ right, 3)
    expected = torch.linalg.inv(left.T) @ middle @ torch.linalg.inv(right)
    torch.testing.assert_close(up @ down, expected, rtol=1e-3, atol=1e-4)


def test_svd_energy_loses_one_share_of_energy_everywhere(net, all_batches):
    with torch.no_grad():  # spectra that decay at different speeds
        net.first.weight.copy_(decaying(30, 20, 0.6))
        net.second.weight.copy_(decaying(24, 30, 0.9))
    measurement = measured(net, all_batches, "svd-energy")
    ranks = plan(measurement, "layers=50%", method="svd-energy").ranks
    kept, stepped = [], []
    for name in ("first", "second"):
        squares = torch.linalg.svdvals(net.get_submodule(name).weight.detach()) ** 2
        lost = 1 - squares.cumsum(0) / squares.sum()
        kept.append(float(lost[ranks[name] - 1]))
        stepped.append(float(lost[ranks[name] - 2]) if ranks[name] > 1 else 1.0)
    # One threshold lies between what every layer loses and what it would lose with a rank less.
    assert max(kept) < min(stepped)
    assert ranks["first"] < ranks["second"]


def test_balf_compares_shares_of_energy_and_not_energies(net, all_batches):
    measurement = measured(net, all_batches, "balf")
    before = plan(measurement, "layers=50%", method="balf").ranks
    with torch.no_grad():  # the network computes the same: relu is homogeneous
        net.third.weight.mul_(1000)
        net.head.weight.div_(1000)
    again = measured(net, all_batches, "balf")
    assert plan(again, "layers=50%", method="balf").ranks == before
    assert len(set(before.values())) > 1


def test_methods_say_what_a_measurement_lacks(net, all_batches):
    forward_only = measured(net, all_batches, "drone")
    for method in ("fwsvd", "zs-svd", "gfwsvd"):
        with pytest.raises(UsageError, match=method):
            plan(forward_only, "layers=50%", method=method)


@pytest.mark.parametrize("method", ["fwsvd", "zs-svd", "gfwsvd"])
def test_methods_made_of_gradients_refuse_to_do_without(net, all_batches, method):
    calibration, selection = all_batches
    with pytest.raises(UsageError, match=f"{method}.* gradients, and none are allowed"):
        measure(net, calibration, selection=selection, method=method, gradients=False)
    made = plan(measured(net, all_batches, method), "layers=50%", method=method)
    assert made.gradients  # so that replaying the plan allows them


def decaying(rows, columns, rate):
    generator = torch.Generator().manual_seed(rows)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(
        torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    )
    side = min(rows, columns)
    return (left[:, :side] * rate ** torch.arange(side)) @ right[:side]
