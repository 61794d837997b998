"""How long threads spin: in the processes that the command starts, and never against the user."""

import subprocess
import sys

import pytest

from compressor.waiting import SHORTLY, wait_shortly

TOLD_BY_OPENMP = """
import os
from compressor.waiting import wait_shortly
wait_shortly(os.environ)
os.environ["OMP_DISPLAY_ENV"] = "VERBOSE"  # the library prints what it takes when it is loaded
import torch
"""


def test_an_environment_that_says_nothing_is_told() -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    wait_shortly(environment)
    assert environment == {"OMP_NUM_THREADS": "3", **SHORTLY}


@pytest.mark.parametrize("variable", SHORTLY)
def test_what_the_user_says_of_waiting_stays(variable: str) -> None:
    environment = {variable: "ACTIVE"}
    wait_shortly(environment)
    assert environment == {variable: "ACTIVE"}


def test_openmp_takes_it() -> None:
    told = subprocess.run(
        [sys.executable, "-c", TOLD_BY_OPENMP], capture_output=True, text=True, check=True
    ).stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("torch brings another OpenMP than GNU's here")
    assert "GOMP_SPINCOUNT = '1000'" in told
