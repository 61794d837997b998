import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from compressor.cli.options import GROUPS, parse_input_size
from compressor.settings import ModelSettings


@given(st.tuples(*[st.integers(1, 4096)] * 3))
def test_an_input_size_reads_back(size):
    assert parse_input_size(",".join(map(str, size))) == size


def test_one_number_is_a_square_colour_image():
    assert parse_input_size("128") == (3, 128, 128)


@pytest.mark.parametrize("text", ["", "a", "3,128", "3,0,128", "1,2,3,4", "3x128x128", "-3,4,4"])
def test_a_wrong_input_size_names_what_was_expected(text):
    with pytest.raises(typer.BadParameter, match="channels,height,width"):
        parse_input_size(text)


def test_a_wrong_mean_names_its_option():
    with pytest.raises(typer.BadParameter) as caught:
        GROUPS[ModelSettings].parse["mean"]("0.5;0.5")
    assert caught.value.param_hint == "'--mean'"
    assert "0.5;0.5" in str(caught.value)
