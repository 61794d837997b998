"""Truncation in two metrics against the explicit SVD of F^{1/2} W Σ^{1/2}."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.methods.decompose import (
    DAMPING,
    balanced,
    decompose,
    decompose_on_smaller_side,
    weighted_error,
)


def spd(size, seed, rank=None):
    """Return a random symmetric positive semi-definite matrix with uneven eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, rank or size + 2, generator=generator, dtype=torch.float64)
    return root * torch.logspace(0, -2, root.shape[1], dtype=torch.float64) @ root.T


def root_of(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def problem(m, n, seed=0):
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weight, spd(n, seed + 1), spd(m, seed + 2)


def damped(matrix):
    return matrix + DAMPING * matrix.trace() / len(matrix) * torch.eye(len(matrix)).double()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_is_the_best_of_each_rank(m, n, seed, with_inputs, with_outputs):
    weight, inputs, outputs = problem(m, n, seed)
    inputs = inputs if with_inputs else None
    outputs = outputs if with_outputs else None
    found = decompose(weight, inputs, outputs)
    # Only the smaller side's metric is inverted, so only that one is damped.
    near_inputs = inputs if inputs is None or m <= n else damped(inputs)
    near_outputs = outputs if outputs is None or m > n else damped(outputs)
    left = torch.eye(m).double() if outputs is None else root_of(near_outputs)
    right = torch.eye(n).double() if inputs is None else root_of(near_inputs)
    values = torch.linalg.svdvals(left @ weight @ right)
    scale = float(values[0] ** 2)
    torch.testing.assert_close(found.energies / scale, values**2 / scale, rtol=1e-6, atol=1e-10)
    tail = found.tail()
    assert len(tail) == min(m, n) + 1
    for rank in range(min(m, n) + 1):
        up, down = found.factors(rank)
        assert (up.shape, down.shape) == ((m, rank), (rank, n))
        lost = weighted_error(weight - up @ down, near_inputs, near_outputs)
        best = float((values[rank:] ** 2).sum())
        assert lost == pytest.approx(best, rel=1e-6, abs=1e-9 * scale)
        assert float(tail[rank]) == pytest.approx(best, rel=1e-6, abs=1e-9 * scale)


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4), (5, 5)])
def test_no_random_matrix_of_the_rank_is_better(m, n):
    weight, inputs, outputs = problem(m, n)
    up, down = decompose(weight, inputs, outputs).factors(2)
    best = weighted_error(weight - up @ down, inputs, outputs)
    generator = torch.Generator().manual_seed(7)
    for _ in range(200):
        other = up + 0.05 * torch.randn(up.shape, generator=generator, dtype=torch.float64)
        assert weighted_error(weight - other @ down, inputs, outputs) >= best * (1 - 1e-4)


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4)])
def test_pulled_form_is_the_same(m, n):
    weight, inputs, outputs = problem(m, n)
    whole = decompose(weight, inputs, outputs)
    if m <= n:
        part = decompose_on_smaller_side(weight, outputs, weight @ inputs @ weight.T)
    else:
        part = decompose_on_smaller_side(weight, inputs, weight.T @ outputs @ weight)
    torch.testing.assert_close(part.energies, whole.energies)
    torch.testing.assert_close(part.up @ part.down, weight)


@pytest.mark.parametrize(("m", "n"), [(3, 8), (8, 3)])
def test_singular_metrics_and_zero_metrics_keep_the_matrix_at_full_rank(m, n):
    weight, _, _ = problem(m, n)
    for inputs, outputs in (
        (spd(n, 1, rank=2), spd(m, 2, rank=1)),
        (torch.zeros(n, n), torch.zeros(m, m)),
    ):
        up, down = decompose(weight, inputs, outputs).factors(min(m, n))
        assert torch.isfinite(up).all()
        torch.testing.assert_close(up @ down, weight, rtol=1e-5, atol=1e-5)


def test_negative_eigenvalues_of_a_metric_are_taken_for_zero():
    weight, inputs, _ = problem(4, 6)
    vectors = torch.linalg.qr(spd(4, 3)).Q
    values = torch.tensor([2.0, 1.0, 0.5, -0.4], dtype=torch.float64)
    indefinite = vectors * values @ vectors.T
    semidefinite = vectors * values.clamp_min(0) @ vectors.T
    found, expected = decompose(weight, inputs, indefinite), decompose(weight, inputs, semidefinite)
    torch.testing.assert_close(found.energies[:3], expected.energies[:3], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(torch.mm(*found.factors(4)), weight)


def test_scale_of_a_metric_changes_energies_alone():
    weight, inputs, outputs = problem(5, 7)
    one, many = decompose(weight, inputs, outputs), decompose(weight, inputs * 1e-20, outputs * 1e8)
    torch.testing.assert_close(many.energies, one.energies * 1e-12, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.mm(*many.factors(3)), torch.mm(*one.factors(3)), rtol=1e-6, atol=1e-9
    )


def test_half_precision_is_computed_in_float64():
    weight = torch.randn(4, 6).bfloat16()
    found = decompose(weight)
    assert found.up.dtype == torch.float64
    torch.testing.assert_close(found.up @ found.down, weight.double())


def test_balanced_shares_the_norm_and_keeps_the_product():
    up, down = torch.randn(5, 3).double() * 1e6, torch.randn(3, 4).double()
    up[:, 1] = 0
    down[2] = 0
    left, right = balanced(up, down)
    torch.testing.assert_close(left @ right, up @ down)
    assert float(left[:, 0].norm()) == pytest.approx(float(right[0].norm()))
    assert torch.isfinite(left).all()
    assert torch.isfinite(right).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.full((2, 3), torch.nan),), "the weight holds NaN or Inf"),
        ((torch.ones(2, 3), torch.full((3, 3), torch.inf)), "the input metric holds NaN"),
        ((torch.ones(2, 3), torch.eye(2)), r"input metric has shape \(2, 2\), expected \(3, 3\)"),
        ((torch.ones(2, 3), None, torch.eye(3)), "output metric has shape"),
    ],
)
def test_what_cannot_be_decomposed(arguments, message):
    with pytest.raises(ValueError, match=message):
        decompose(*arguments)


def test_weighted_error_is_its_formula():
    difference, inputs, outputs = problem(3, 4)
    expected = torch.trace(outputs @ difference @ inputs @ difference.T)
    assert weighted_error(difference, inputs, outputs) == pytest.approx(float(expected))
    plain = weighted_error(difference, None, None)
    assert plain == pytest.approx(float(difference.square().sum()))


@pytest.mark.parametrize(("m", "n"), [(5, 8), (8, 5)])
def test_cut_to_a_rank_it_holds_no_more_factors_and_the_same_losses(m, n):
    weight, inputs, outputs = problem(m, n)
    whole = decompose(weight, inputs, outputs)
    cut = whole.to_keep(3, torch.float64)
    assert (cut.up.shape, cut.down.shape) == ((m, 3), (3, n))
    assert cut.up.untyped_storage().nbytes() == cut.up.nbytes
    assert cut.down.untyped_storage().nbytes() == cut.down.nbytes
    torch.testing.assert_close(cut.tail(), whole.tail())
    for rank in (1, 3):
        for one, other in zip(cut.factors(rank), whole.factors(rank), strict=True):
            torch.testing.assert_close(one, other)
    assert whole.to_keep(5, torch.float64) is whole
    single = whole.to_keep(3, torch.float32)
    assert (single.up.dtype, single.down.dtype) == (torch.float32, torch.float32)
    assert torch.equal(single.energies, whole.energies)
    for one, other in zip(single.factors(3), whole.factors(3), strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
