"""Latency budgets: timed in the runtime that was asked for, and refused by name where unmet."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from compressor.errors import BudgetError
from compressor.evaluation.runtimes.runtime import RUNTIMES
from compressor.methods import pace
from compressor.methods.pace import ATTEMPTS
from compressor.stages import plan, subject_of
from tests.methods.measured import measured


def subject(runtime):
    return dataclasses.replace(subject_of(measured("svd")), runtime=runtime)


def need(runtime):
    if runtime == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    if runtime == "compile" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++")


@pytest.mark.parametrize("runtime", ["eager", "compile", "onnx"])
def test_both_models_are_timed_in_the_runtime(runtime, monkeypatch):
    need(runtime)
    member = type(RUNTIMES.get(runtime))
    prepare, prepared = member.prepare, []

    def noted(self, model, forward, inputs):
        prepared.append((model, len(inputs)))
        return prepare(self, model, forward, inputs)

    monkeypatch.setattr(member, "prepare", noted)
    asked = subject(runtime)
    made = plan(measured("svd"), ["latency=60s@3", "layers=60%"], method="svd", subject=asked)
    (found,) = made.paces
    assert found.met
    assert 0 < found.compressed < found.limit == 60_000
    assert made.unmet == ()
    dense = measured("svd").model
    assert any(model is dense for model, _ in prepared)
    assert any(model is not dense for model, _ in prepared)
    assert {samples for _, samples in prepared} == {3}
    with pytest.raises(
        BudgetError,
        match=r"The budget latency=1e-06ms@3 cannot be met\. .* smallest .* at its fastest",
    ):
        plan(measured("svd"), "latency=0.000001ms@3", method="svd", subject=asked)


class Clock:
    """Timing in turn by a clock that says what it is told."""

    def __init__(self, *compressed):
        self.compressed, self.calls = compressed, 0

    def __call__(self, dense, compressed, inputs, *, forward, runtime):
        del dense, compressed, inputs, forward, runtime
        self.calls += 1
        return Timed(10.0, self.compressed[min(self.calls, len(self.compressed)) - 1])


@dataclasses.dataclass(frozen=True)
class Timed:
    dense: float
    compressed: float


def test_what_only_the_clock_refuses_is_named(monkeypatch):
    clock = Clock(90_000.0)
    monkeypatch.setattr(pace, "compare_latency", clock)
    asked = subject("eager")
    with pytest.raises(BudgetError, match=r"latency=6e\+04ms@3 cannot be met: .* 9e\+04 ms of"):
        plan(measured("svd"), "latency=60s@3", method="svd", subject=asked)
    assert 1 <= clock.calls <= ATTEMPTS
    nearest = plan(measured("svd"), "latency=60s@3", method="svd", subject=asked, best_effort=True)
    assert "latency=6e+04ms@3" in nearest.unmet[0]
    assert not nearest.paces[0].met


def test_the_nearest_of_the_models_tried_is_what_remains(monkeypatch):
    clock = Clock(61_000.0, 60_500.0, 90_000.0)
    monkeypatch.setattr(pace, "compare_latency", clock)
    # The small net's fixed time leaves its ranks no room to follow a tighter limit.
    monkeypatch.setattr(pace, "_tightened", lambda constraints, decision, paces: constraints)
    made = plan(
        measured("svd"),
        "latency=60s@3",
        method="svd",
        subject=subject("eager"),
        best_effort=True,
    )
    assert clock.calls == ATTEMPTS
    assert made.paces[0].compressed == 60_500.0
    assert "takes 6.05e+04 ms of" in made.unmet[0]
