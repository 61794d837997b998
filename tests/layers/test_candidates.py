"""What a candidate is and costs."""

from __future__ import annotations

from compressor.layers.candidates import Candidate


def test_costs_of_a_candidate():
    layer = Candidate("a", "linear", (20, 30), True, "a", 1)
    assert layer.parameters == 600
    assert layer.full_rank == 20
    assert layer.break_even_rank == 11  # 11·50 = 550 < 600 = 12·50
    assert layer.cost(11) == 550
    assert layer.cost(12) == layer.cost(20) == 600
