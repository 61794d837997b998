"""The spatial form against brute force in float64: optimum, losses of all ranks, refit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.methods.decompose import weighted_error
from compressor.methods.separable import (
    decompose_separable,
    folded,
    folded_sum,
    solve_filters,
    widened,
)

M, C, T = 5, 6, 3


def metric(side: int, seed: int, samples: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(samples or 4 * side, side, generator=generator).double()
    return rows.T @ rows / len(rows)


def weight(seed: int = 0) -> Tensor:
    return torch.randn(M, C * T, generator=torch.Generator().manual_seed(seed)).double()


def patches_metric(seed: int = 1) -> Tensor:
    """Return second moments of patches whose columns overlap."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(C, 400, generator=generator).double()
    smooth = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    rows = smooth.unfold(1, T, 1).transpose(0, 1).flatten(1)
    return rows.T @ rows / len(rows)


def kernel_loss(w: Tensor, filters: Tensor, up: Tensor) -> Tensor:
    """Return the squared error of the kernels themselves, each written out tap by tap."""
    kernels = torch.einsum("mrt,rc->mct", up.reshape(M, -1, T), filters)
    return (w.reshape(M, C, T) - kernels).square().sum()


def test_without_metrics_it_is_the_svd_of_the_folded_kernels():
    w = weight()
    values = torch.linalg.svdvals(w.reshape(M, C, T).transpose(1, 2).reshape(M * T, C))
    found = decompose_separable(w, T)
    torch.testing.assert_close(found.energies, values.square())
    for rank in range(1, C + 1):
        up, down = found.factors(rank)
        assert (up.shape, down.shape) == ((M, rank * T), (rank * T, C * T))
        lost = (w - up @ down).square().sum()
        torch.testing.assert_close(lost, values[rank:].square().sum(), atol=1e-12, rtol=1e-9)
        filters = down.reshape(rank, T, C, T)[:, 0, :, 0]
        torch.testing.assert_close(kernel_loss(w, filters, up), lost)
        torch.testing.assert_close(widened(filters, T), down)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), identity=st.sampled_from(["inputs", "outputs", "neither"]))
def test_the_losses_of_all_ranks_are_those_of_the_factors(seed, identity):
    w = weight(seed)
    inputs = None if identity == "inputs" else metric(C * T, seed + 1)
    outputs = None if identity == "outputs" else metric(M, seed + 2)
    found = decompose_separable(w, T, inputs, outputs)
    total = weighted_error(w, inputs, outputs)
    tail = found.tail()
    assert len(tail) == C + 1
    assert float(tail[0]) == pytest.approx(total, rel=1e-4)
    for rank in range(1, C + 1):
        up, down = found.factors(rank)
        lost = weighted_error(w - up @ down, inputs, outputs)
        assert lost == pytest.approx(float(tail[rank]), rel=1e-4, abs=1e-5 * total)


def test_the_horizontal_filters_are_the_best_for_the_vertical_ones():
    w, inputs, outputs = weight(), patches_metric(), metric(M, 7)
    up, down = decompose_separable(w, T, inputs, outputs).factors(3)
    best = up.clone().requires_grad_()
    difference = w - best @ down
    (outputs @ difference @ inputs * difference).sum().backward()
    scale = float((outputs @ w @ inputs @ down.T).abs().max())
    assert float(best.grad.abs().max()) < 1e-4 * scale


def descended(w: Tensor, inputs: Tensor, outputs: Tensor, rank: int, seed: int) -> float:
    """Return the loss that descent over both factors ends at, from a random start."""
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(rank, C, generator=generator).double().requires_grad_()
    up = torch.randn(M, rank * T, generator=generator).double().requires_grad_()
    optimizer = torch.optim.LBFGS([filters, up], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        difference = w - up @ torch.kron(filters, torch.eye(T).double())
        return (outputs @ difference @ inputs * difference).sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    optimizer.step(step)
    return float(loss().detach())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_where_the_metric_is_a_product_none_is_better(rank):
    w, outputs = weight(3), metric(M, 5)
    inputs = torch.kron(metric(C, 3).contiguous(), metric(T, 4).contiguous())
    lost = float(decompose_separable(w, T, inputs, outputs).tail()[rank])
    best = min(descended(w, inputs, outputs, rank, seed) for seed in range(3))
    assert lost == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_on_patches_it_comes_near_the_best(rank):
    w, inputs, outputs = weight(3), patches_metric(), metric(M, 5)
    lost = float(decompose_separable(w, T, inputs, outputs).tail()[rank])
    best = min(descended(w, inputs, outputs, rank, seed) for seed in range(3))
    total = weighted_error(w, inputs, outputs)
    assert best * 0.999 <= lost <= best + 0.03 * total


def test_filters_above_the_largest_rank_are_not_kept():
    whole, cut = decompose_separable(weight(), T), decompose_separable(weight(), T, most=2)
    torch.testing.assert_close(cut.energies, whole.energies)
    assert cut.filters.shape == (2, C)
    for found, expected in zip(cut.factors(2), whole.factors(2), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_singular_metric_and_equal_kernels_are_no_failure():
    w = weight()[:1].expand(M, -1).clone()
    inputs = metric(C * T, 1, samples=4)
    found = decompose_separable(w, T, inputs, torch.zeros(M, M).double())
    assert all(torch.isfinite(part).all() for part in found.factors(C))
    assert float(found.tail()[0]) == 0.0
    for metrics in ((), (inputs,), (inputs - 0.01 * torch.eye(C * T),)):
        zero = decompose_separable(torch.zeros(M, C * T), T, *metrics)
        assert not zero.factors(2)[0].any()
        wide = decompose_separable(torch.zeros(1, C * T), T, *metrics)
        assert not wide.factors(2)[0].any()


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or Inf"):
        decompose_separable(weight(), T, torch.full((C * T, C * T), float("nan")).double())


def test_solved_filters_have_the_normal_equations_of_least_squares():
    rank, w, gram = 3, weight(), patches_metric()
    gram = gram + 0.01 * torch.eye(len(gram))
    outputs = metric(M, 4)
    up = torch.randn(M, rank * T, generator=torch.Generator().manual_seed(3)).double()
    inner = up.T @ outputs @ up
    found = solve_filters(inner, gram, folded_sum(up.T @ outputs @ w @ gram, T), T)
    filters = found.clone().requires_grad_()
    difference = w - up @ torch.kron(filters, torch.eye(T).double())
    (outputs @ difference @ gram * difference).sum().backward()
    scale = float(folded_sum(up.T @ outputs @ w @ gram, T).norm())
    assert float(filters.grad.norm()) < 1e-5 * scale


def test_folding_moves_the_last_axis_to_the_rows():
    kernels = torch.randn(M, 2, 3, T)
    moved = folded(kernels.flatten(1), T)
    assert moved.shape == (M * T, 6)
    torch.testing.assert_close(moved[2 * T + 1], kernels[2, :, :, 1].flatten())
