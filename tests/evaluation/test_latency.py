"""Timing in turn, and the peak of a forward; no test here depends on how fast anything is."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from compressor.errors import UnknownNameError
from compressor.evaluation.latency import compare_latency, one_forward, time_in_turn
from compressor.evaluation.memory import peak_memory
from compressor.evaluation.runtimes.runtime import RUNTIMES
from compressor.forward import Forward

CPU = torch.device("cpu")


class Waits(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_calls_are_timed_in_turn_after_a_warm_up():
    order = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    taken = time_in_turn(calls, CPU, rounds=3, seconds=60)
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert [len(times) for times in taken] == [3, 3]


def test_no_round_begins_after_the_time_is_up_but_the_fewest():
    calls = [lambda: time.sleep(0.01)]
    assert len(time_in_turn(calls, CPU, rounds=50, seconds=0.0)[0]) == 5
    assert len(time_in_turn(calls, CPU, rounds=50, seconds=0.0, fewest=1)[0]) == 1


def test_medians_tell_which_model_waits():
    found = compare_latency(Waits(0.03), Waits(0.01), torch.ones(4, 2), forward=Forward(), rounds=5)
    assert found.batch == 4
    assert found.rounds == 5
    assert found.dense >= 30
    assert found.compressed >= 10
    assert found.share < 1
    assert one_forward(Waits(0.02), torch.ones(1, 2), forward=Forward()) >= 0.02


def test_unknown_runtime():
    with pytest.raises(UnknownNameError, match=r"Unknown runtime 'eagre'\. Did you mean 'eager'"):
        compare_latency(
            nn.Identity(), nn.Identity(), torch.ones(1, 2), forward=Forward(), runtime="eagre"
        )


@pytest.mark.parametrize("name", ["eager", "onnx"])
def test_a_runtime_runs_the_model(name):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    inputs = torch.randn(1, 6)
    with torch.inference_mode():
        expected = model(inputs)
        found = RUNTIMES.get(name).prepare(model, Forward(), inputs)()
    found = torch.as_tensor(found[0]) if isinstance(found, list) else found
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_peak_memory_counts_weights_and_what_lives_at_once():
    model = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 10)).eval()
    inputs = torch.randn(50, 100)
    weights = 4 * sum(p.numel() for p in model.parameters())
    found = peak_memory(model, inputs, forward=Forward())
    wide = 50 * 1000 * 4
    # Both sides of the ReLU at once, or the wider one and the logits; never all three layers'.
    assert weights + 2 * wide <= found <= weights + 2 * wide + 50 * 10 * 4
    inplace = nn.Sequential(model[0], nn.ReLU(inplace=True), model[2])
    less = peak_memory(inplace, inputs, forward=Forward())
    assert less == weights + wide + 50 * 10 * 4


def test_a_view_costs_nothing_and_deep_models_do_not_add_up():
    layers = [nn.Flatten(), *(nn.Linear(64, 64) for _ in range(20))]
    model = nn.Sequential(*layers).eval()
    weights = 4 * sum(p.numel() for p in model.parameters())
    one = 32 * 64 * 4
    assert peak_memory(model, torch.randn(32, 8, 8), forward=Forward()) - weights <= 3 * one
