"""Fixtures that tests of several floors share: small trained checkpoints, made once."""

from __future__ import annotations

import os

# Read when torch is imported, and by the processes that tests start. Workers that each have a
# thread a core wait for one another at every parallel sum: several times the CPU time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

from tests.trained import Case, cnn_case, text_case, vit_case

# A machine that is busy with other work is no failure of what is tested.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def trained_bert(tmp_path_factory) -> Case:
    """Return a BERT that tells three topics apart, with train and test as CSV; do not change it."""
    return text_case(tmp_path_factory.mktemp("trained-bert"))


@pytest.fixture(scope="session")
def trained_vit(tmp_path_factory) -> Case:
    """Return timm's test_vit, with class folders of three colours; do not change it."""
    return vit_case(tmp_path_factory.mktemp("trained-vit"))


@pytest.fixture(scope="session")
def trained_cnn(tmp_path_factory) -> Case:
    """Return the CNN of examples/plain_cnn.py, for digits; do not change it."""
    return cnn_case(tmp_path_factory.mktemp("trained-cnn"))
