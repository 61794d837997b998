"""Sums over many rows, part by part."""

from __future__ import annotations

import pytest
import torch

from compressor.collapse import spans as module
from compressor.collapse.spans import column_energies, column_sizes, spans, squared_lengths


@pytest.mark.parametrize("span", [1, 12, 1 << 18])
def test_parts_cover_the_rows_once_and_change_no_sum(span, monkeypatch):
    monkeypatch.setattr(module, "SPAN", span)
    rows = torch.randn(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = list(spans(rows))
    assert torch.equal(torch.cat([rows[part] for part in parts]), rows)
    assert len(parts) == {1: 23, 12: 8, 1 << 18: 1}[span]
    torch.testing.assert_close(column_energies(rows), (rows**2).sum(0))
    torch.testing.assert_close(column_sizes(rows), rows.abs().sum(0))
    torch.testing.assert_close(squared_lengths(rows), (rows**2).sum(1))


def test_no_rows_sum_to_zero():
    rows = torch.empty(0, 3)
    assert list(spans(rows)) == []
    assert torch.equal(column_energies(rows), torch.zeros(3))
