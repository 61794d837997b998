import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.report.figures import count, duration, figure, percent, points, shorten, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_600, "1.00 M"),
        (2_712_010, "2.71 M"),
        (22_713_216, "22.7 M"),
        (340e9, "340 G"),
    ],
)
def test_counts_have_three_digits_and_a_prefix(value, text):
    assert count(value) == text


def test_sizes_are_in_decimal_bytes():
    assert (size(5_431_052), size(512), size(None)) == ("5.43 MB", "512 B", "–")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.0123, "0.012"),
        (0.5, "0.500"),
        (9.996, "10.0"),
        (113.2, "113"),
        (12345.0, "1.2e+04"),
        (2e-5, "2.0e-05"),
    ],
)
def test_figures_keep_three_digits(value, text):
    assert figure(value) == text


def test_differences_are_signed_points():
    assert [points(x) for x in (-0.005, 0.012, 0.0, -0.0001)] == ["−0.5", "+1.2", "±0.0", "±0.0"]


def test_percent_and_duration():
    assert percent(0.6) == "60.0 %"
    assert percent(None) == "–"
    assert duration(8.24) == "8.2 s"
    assert duration(200) == "3 min 20 s"


@given(st.text(min_size=1, max_size=80), st.integers(3, 60))
def test_a_shortened_name_fits_and_keeps_both_ends(name, width):
    short = shorten(name, width)
    assert len(short) <= width
    if len(name) <= width:
        assert short == name
    else:
        assert len(short) == width
        assert short[0] in (name[0], "…")
        assert short[-1] == name[-1]


def test_a_shortened_layer_keeps_its_role():
    name = "bert.encoder.layer.11.attention.self.query"
    assert shorten(name, 27).endswith("attention.self.query"[-17:])
