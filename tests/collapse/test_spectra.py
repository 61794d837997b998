import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.collapse.spectra import (
    _solved,
    effective_rank,
    eigh,
    eigvalsh,
    numerical_rank,
    singular_values,
    stable_rank,
)

sides = st.integers(1, 12)


def matrix(seed, rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), sides, sides)
def test_singular_values_are_those_of_the_decomposition(seed, rows, columns):
    weight = matrix(seed, rows, columns)
    expected = np.linalg.svd(weight.numpy(), compute_uv=False)
    found = singular_values(weight)
    assert found.shape == (min(rows, columns),)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * expected[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), sides, sides, sides)
def test_singular_values_in_a_metric(seed, rows, columns, samples):
    weight, inputs = matrix(seed, rows, columns), matrix(seed + 1, samples, columns)
    covariance = inputs.T @ inputs / samples  # rank deficient for few samples
    expected = np.linalg.svd((weight @ inputs.T).numpy() / math.sqrt(samples), compute_uv=False)
    found = singular_values(weight, covariance).numpy()
    assert found.shape == (min(rows, columns),)
    kept = min(len(found), len(expected))
    close = {"rtol": 1e-6, "atol": 1e-6 * expected[0]}
    np.testing.assert_allclose(found[:kept], expected[:kept], **close)
    np.testing.assert_allclose(found[kept:], 0, atol=1e-6 * expected[0])


def test_half_precision_weights_are_decomposed_in_float64():
    weight = matrix(0, 4, 6).bfloat16()
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    assert singular_values(weight).dtype == torch.float64
    np.testing.assert_allclose(singular_values(weight), expected, rtol=1e-9)


def test_ranks_of_a_flat_spectrum_are_its_length():
    values = torch.full((7,), 0.3, dtype=torch.float64)
    assert stable_rank(values) == pytest.approx(7)
    assert effective_rank(values) == pytest.approx(7)
    assert numerical_rank(values) == 7


def test_ranks_of_one_direction_are_one():
    values = singular_values(torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 4)))
    assert stable_rank(values) == pytest.approx(1)
    assert effective_rank(values) == pytest.approx(1, abs=1e-5)
    assert numerical_rank(values) == 1


def test_ranks_by_hand():
    values = torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert stable_rank(values) == pytest.approx(6 / 4)
    assert effective_rank(values) == pytest.approx(math.exp(1.5 * math.log(2)))
    assert numerical_rank(values) == 3
    assert numerical_rank(values, tolerance=0.5) == 1


def test_the_zero_matrix_has_rank_zero():
    values = singular_values(torch.zeros(3, 5))
    assert stable_rank(values) == effective_rank(values) == numerical_rank(values) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or Inf"):
        singular_values(torch.tensor([[1.0, bad]]))


class OnADevice:
    """Stands for a matrix on a device whose solver fails."""

    device = torch.device("cuda")

    def __init__(self, matrix):
        self.matrix = matrix

    def cpu(self):
        return self.matrix


def test_a_device_whose_solver_fails_leaves_it_to_the_cpu():
    def solve(matrix):
        if isinstance(matrix, OnADevice):
            raise torch.linalg.LinAlgError("cusolver error")
        return torch.linalg.eigvalsh(matrix)

    matrix = torch.diag(torch.tensor([3.0, 1.0, 2.0]))
    assert _solved(solve, OnADevice(matrix)).tolist() == [1.0, 2.0, 3.0]


def test_a_cpu_whose_solver_fails_is_an_error():
    def solve(matrix):
        raise torch.linalg.LinAlgError("no convergence")

    with pytest.raises(ValueError, match="no convergence"):
        _solved(solve, torch.eye(2))


def test_what_is_not_symmetric_is_evened_out():
    matrix = torch.tensor([[2.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    values, vectors = eigh(matrix)
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, (matrix + matrix.T) / 2)
    torch.testing.assert_close(eigvalsh(matrix), values)
