"""Every kind of budget through the command line: kept to, or refused with exit code 3."""

from __future__ import annotations

import json

import pytest

from compressor.cli import main
from compressor.demo import MODEL
from compressor.schema import Report

QUICK = (
    *("--data", "sklearn:digits", "--calibration", "120", "--limit", "100"),
    *("--device", "cpu", "--method", "svd", "--quiet", "--json"),
)


def compress(out, *words):
    return main(["compress", str(MODEL), *QUICK, *words, "--out", str(out)])


def report_of(out):
    return Report.model_validate_json((out / "report.json").read_text())


def test_size_and_flops_hold_together(tmp_path):
    out = tmp_path / "small"
    assert compress(out, "--budget", "size=3.2MB", "--budget", "flops=55%") == 0
    found = report_of(out)
    size = (out / "model.safetensors").stat().st_size
    assert size == found.compressed.bytes
    assert 2.5e6 < size <= 3.2e6
    assert found.compressed.flops <= 0.55 * found.dense.flops
    binding = max(size / 3.2e6, found.compressed.flops / found.dense.flops / 0.55)
    assert binding > 0.99  # what may be kept is kept
    assert [(budget.budget, budget.met) for budget in found.budgets] == [
        ("size=3.2MB", True),
        ("flops=55%", True),
    ]


@pytest.mark.parametrize("budget", ["size=50kB", "flops=1%", "params=20k", "layers=0.1%"])
def test_what_cannot_be_met_is_refused_before_anything_is_measured(budget, tmp_path, capsys):
    assert compress(tmp_path / "none", "--budget", "layers=90%", "--budget", budget) == 3
    message = capsys.readouterr().err
    assert f"The budget {budget.split('=')[0]}=" in message
    assert "smallest" in message
    assert not list(tmp_path.iterdir())


def test_best_effort_saves_the_nearest_and_still_ends_with_three(tmp_path, capsys):
    out = tmp_path / "small"
    assert compress(out, "--budget", "size=50kB", "--best-effort") == 3
    captured = capsys.readouterr()
    assert "size=50kB cannot be met" in captured.err
    assert "nearest" in captured.err
    printed = json.loads(captured.out)
    assert printed["budgets"][0]["met"] is False
    assert {layer["rank"] for layer in printed["layers"]} == {1}
    assert (out / "model.safetensors").stat().st_size == printed["compressed"]["bytes"]


def test_a_promise_about_accuracy_is_kept_by_a_smaller_model(tmp_path):
    out = tmp_path / "small"
    assert compress(out, "--budget", "drop=4", "--budget", "params=95%", "--selection", "200") == 0
    found = report_of(out)
    assert 1 < len(found.trials) <= 8
    kept = min(trial.share for trial in found.trials if trial.kept)
    dense, small = found.dense, found.compressed
    assert small.layer_parameters == round(kept * dense.layer_parameters)
    assert [budget.met for budget in found.budgets] == [True, True]
    assert "points (" in found.budgets[0].reached
    by_metric = {loss.metric: loss for loss in found.losses}
    assert by_metric["top-1"].value == pytest.approx(dense.accuracy - small.accuracy)
    assert by_metric["top-1"].low <= by_metric["top-1"].value <= by_metric["top-1"].high
    assert dense.metrics["top-1"] == pytest.approx(dense.accuracy)
    assert dense.metrics["log-loss"] == pytest.approx(dense.loss)
    page = (out / "report.html").read_text()
    assert "Search for the smallest model" in page
    assert "macro F1" in page


def test_latency_is_measured_and_told(tmp_path, capsys):
    out = tmp_path / "small"
    budgets = ("--budget", "latency=60s@4", "--budget", "layers=60%")
    assert compress(out, *budgets) == 0
    found = report_of(out)
    assert found.budgets[0].met
    assert found.budgets[0].limit == "6e+04 ms"
    assert found.compressed.layer_parameters <= 0.6 * found.dense.layer_parameters
    assert [figures.batch for figures in found.speed.batches] == [1, 32]
    assert all(figures.dense > 0 and figures.compressed > 0 for figures in found.speed.batches)
    last = found.speed.batches[-1]
    assert last.dense_memory > last.compressed_memory > found.compressed.parameters * 4
    assert all(layer.rank % 8 == 0 for layer in found.layers if layer.rank < layer.full_rank)
    assert "times as fast as dense at batch 32" in (out / "report.html").read_text()
    capsys.readouterr()
    assert compress(tmp_path / "none", "--budget", "latency=0.001ms") == 3
    refused = " ".join(capsys.readouterr().err.split())
    assert "The budget latency=0.001ms cannot be met. The smallest that can be reached" in refused
    assert not (tmp_path / "none").exists()
