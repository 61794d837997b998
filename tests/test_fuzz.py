"""A part of `make fuzz`, and hypothesis: whatever a file holds is read or refused in words."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import run
from tests.fuzz.targets import CHEAP, TARGETS, attempt

SEEDS = {
    name: [path.read_bytes() for path in sorted((run.CORPUS / name).iterdir())] for name in TARGETS
}
QUICKLY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_itself_is_read(name):
    """Of every kind one file is valid: what is fuzzed is not refused at the first byte."""
    if name == "report":
        assert attempt(TARGETS[name], SEEDS[name][0]) is None
        return
    assert any(attempt(TARGETS[name], data) is None for data in SEEDS[name])


@pytest.mark.parametrize("name", CHEAP)
def test_mutations_are_read_or_refused(name, tmp_path):
    inputs = 20 if name == "manifest" else 300  # YAML nested deep takes a second to refuse
    counts, failing = run.fuzz(name, inputs, seed=1, until=float("inf"), crashes=tmp_path)
    assert failing == []
    assert sum(counts.values()) == inputs
    assert counts["read"] < inputs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("name", ["config", "plan", "integrity", "report", "shard_index"])
@given(data=st.data())
@QUICKLY
def test_values_of_any_type_in_place_of_any_key(name, data):
    content = json.loads(SEEDS[name][0])
    key = data.draw(st.sampled_from(sorted(content)))
    content[key] = data.draw(JSON)
    attempt(TARGETS[name], json.dumps(content).encode())


@pytest.mark.parametrize("name", CHEAP)
@given(data=st.binary(max_size=200))
@QUICKLY
def test_any_bytes_are_refused(name, data):
    attempt(TARGETS[name], data)


def test_a_target_that_crashes_is_caught(monkeypatch, tmp_path):
    def crashing(data: bytes) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setitem(run.TARGETS, "plan", crashing)
    counts, failing = run.fuzz("plan", 3, seed=0, until=time.monotonic() + 60, crashes=tmp_path)
    assert counts == Counter(failed=3)
    assert Path(failing[0]).read_bytes() == SEEDS["plan"][0]


def test_a_target_that_hangs_is_caught(monkeypatch):
    monkeypatch.setattr(run, "LONGEST", 1)
    run.catch_slow()

    def hanging(data: bytes) -> None:
        while True:
            pass

    problem = run.failure(hanging, b"", Counter())
    assert problem is not None
    assert "TooSlowError" in problem
