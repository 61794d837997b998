import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.report.intervals import wilson

Z = 1.959963984540054


@given(st.integers(1, 5000), st.data())
def test_it_is_wilsons_interval(samples, data):
    hits = data.draw(st.integers(0, samples))
    p = hits / samples
    centre = (p + Z**2 / (2 * samples)) / (1 + Z**2 / samples)
    half = Z / (1 + Z**2 / samples) * math.sqrt(p * (1 - p) / samples + Z**2 / (4 * samples**2))
    assert wilson(p, samples) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_nothing_counted_has_no_interval():
    assert wilson(None, 10) is None
    assert wilson(0.5, 0) is None
