import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.sweep.landmarks import knee, smallest_within

CURVES = st.lists(
    st.tuples(st.integers(1, 99), st.integers(0, 100)), min_size=3, unique_by=lambda p: p[0]
)


def test_the_knee_of_a_bent_curve_is_its_bend():
    assert knee([10, 20, 30, 60, 100], [20, 50, 90, 95, 98]) == 2
    assert knee([100, 60, 30, 20, 10], [98, 95, 90, 50, 20]) == 2


def test_it_is_the_published_example():
    # y = −1/(x + 0.1) + 5 at ten points of 0…1: figure 2 of the paper, the knee at 0.22.
    costs = [index / 9 for index in range(10)]
    values = [-1 / (x + 0.1) + 5 for x in costs]
    assert costs[knee(costs, values)] == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    ("costs", "values"),
    [
        ([1, 2], [0, 1]),
        ([1, 2, 3], [5, 5, 5]),
        ([1, 2, 3], [0, 1, 2]),  # straight
        ([1, 2, 3], [0, 0.1, 2]),  # bent the other way
        ([1, 2, 3], [3, 2, 1]),
    ],
)
def test_some_curves_have_no_knee(costs, values):
    assert knee(costs, values) is None


@given(CURVES, st.floats(0.1, 50), st.floats(-10, 10))
def test_units_do_not_move_the_knee(curve, scale, shift):
    costs, values = [x for x, _ in curve], [y for _, y in curve]
    plain = knee(costs, values)
    moved = knee([scale * x for x in costs], [scale * y + shift for y in values])
    if plain is not None and moved is not None:
        ends = sorted(costs)

        def above(index):
            spread = max(values) - min(values)
            x = (costs[index] - ends[0]) / (ends[-1] - ends[0])
            return (values[index] - min(values)) / spread - x

        assert math.isclose(above(plain), above(moved), abs_tol=1e-6)


def test_the_smallest_within_a_loss():
    costs, values = [0.9, 0.5, 0.3, 0.1], [0.90, 0.897, 0.88, 0.5]
    assert smallest_within(costs, values, 0.9, 0.005) == 1
    assert smallest_within(costs, values, 0.9, 0.02) == 2
    assert smallest_within(costs, values, 0.99, 0.02) is None
