"""A batch of real jobs on the bundled model, by its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import compressor.demo
from compressor.cli import main

ROOT = Path(__file__).parents[2]
MANIFEST = f"""
defaults:
  model: {Path(compressor.demo.__file__).parent}
  data: sklearn:digits
  calibration: 40
  limit: 40
  method: whitened
jobs:
  - name: half
    budget: layers=50%
  - name: nothing
    budget: layers=0.1%
  - name: foreign
    model: ./other.safetensors
    budget: layers=50%
"""


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "compressor", "batch", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return a directory where the manifest was run, and how that ended."""
    root = tmp_path_factory.mktemp("batch")
    (root / "jobs.yaml").write_text(MANIFEST)
    (root / "other.safetensors").write_bytes(b"no weights")
    words = ("jobs.yaml", "--workers", "2", "--log-format", "json", "--json")
    return root, run(*words, cwd=root)


@pytest.mark.slow
def test_each_job_ends_as_it_must(ran):
    _, done = ran
    summary = json.loads(done.stdout)
    assert {job["job"]: job["status"] for job in summary["jobs"]} == {
        "half": "done",
        "nothing": "budget_not_met",
        "foreign": "failed",
    }, done.stderr
    assert done.returncode == 1
    assert all({"time", "level", "job"} <= json.loads(line).keys() for line in
               done.stderr.splitlines())  # fmt: skip


@pytest.mark.slow
def test_a_jobs_result_is_what_compress_gives(ran, tmp_path, monkeypatch):
    root, _ = ran
    model = str(Path(compressor.demo.__file__).parent)
    monkeypatch.chdir(tmp_path)
    words = ["compress", model, "--data", "sklearn:digits", "--calibration", "40", "--limit", "40"]
    words += ["--method", "whitened", "--budget", "layers=50%", "--out", "alone", "--quiet"]
    assert main(words) == 0
    alone, batched = (
        json.loads((path / "report.json").read_text())
        for path in (tmp_path / "alone", root / "runs" / "half")
    )
    assert batched["layers"] == alone["layers"]
    assert batched["compressed"] == alone["compressed"]
    weights = [
        (path / "model.safetensors").read_bytes()
        for path in (tmp_path / "alone", root / "runs" / "half")
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_report_knows_its_job(ran):
    root, done = ran
    keys = {job["job"]: job["key"] for job in json.loads(done.stdout)["jobs"]}
    assert json.loads((root / "runs/half/report.json").read_text())["job"] == keys["half"]


@pytest.mark.slow
def test_the_plan_tells_what_is_left(ran, capsys):
    root, _ = ran
    words = ["batch", str(root / "jobs.yaml"), "--out", str(root / "runs"), "--dry-run", "--json"]
    assert main(words) == 0
    states = {job["job"]: job["state"] for job in json.loads(capsys.readouterr().out)["jobs"]}
    assert states == {"half": "done", "nothing": "budget_not_met", "foreign": "to do"}


def test_the_schema_is_printed_for_editors(capsys):
    assert main(["batch", "--schema"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


def test_a_wrong_manifest_ends_with_2_and_begins_nothing(tmp_path, capsys):
    (tmp_path / "jobs.yaml").write_text("jobs:\n  - {model: a, data: b, bugdet: layers=50%}\n")
    words = ["batch", str(tmp_path / "jobs.yaml"), "--out", str(tmp_path / "runs")]
    assert main(words) == 2
    assert "jobs.yaml:2: jobs[0]: unknown key 'bugdet'. Did you mean 'budget'?" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


def test_with_json_logs_an_error_is_a_line_of_the_log(tmp_path, capsys):
    assert main(["batch", str(tmp_path / "none.yaml"), "--log-format", "json"]) == 2
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "error"
    assert "none.yaml" in line["message"]


def test_a_call_without_a_manifest_is_refused(capsys):
    assert main(["batch"]) == 2
    assert "Name the manifest" in capsys.readouterr().err
