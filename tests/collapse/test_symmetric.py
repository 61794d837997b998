"""Sums of symmetric products against the products written out."""

import pytest
import torch

from compressor.collapse import symmetric
from compressor.collapse.symmetric import PANEL, SymmetricSum


def test_sums_are_added_up_in_float64():
    rows = torch.randn(3, 500, dtype=torch.float64)
    total = SymmetricSum(torch.ones(500, 500, dtype=torch.float64))
    total.add_gram(rows.float())
    torch.testing.assert_close(total.matrix, 1 + rows.T @ rows, rtol=1e-5, atol=1e-5)
    total.add_gram(rows)
    torch.testing.assert_close(total.matrix, 1 + rows.T @ rows * 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [1, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL])
def test_the_whole_matrix_is_symmetric_whenever_it_is_asked_for(side):
    total = SymmetricSum.zero(side)
    expected = torch.zeros(side, side, dtype=torch.float64)
    for _ in range(3):
        rows = torch.randn(5, side, dtype=torch.float64)
        weights = torch.rand(5, 1, dtype=torch.float64)
        total.add(rows * weights, rows, 2.0)
        expected += 2 * (rows * weights).T @ rows
        torch.testing.assert_close(total.matrix, expected)
        torch.testing.assert_close(total.matrix, total.matrix.T, rtol=0, atol=1e-12)


def test_many_rows_are_multiplied_in_blocks(monkeypatch):
    monkeypatch.setattr(symmetric, "BLOCK", 7)
    rows = torch.randn(50, 4, dtype=torch.float64)
    total = SymmetricSum.zero(4)
    total.add_gram(rows)
    torch.testing.assert_close(total.matrix, rows.T @ rows)
