"""How jobs are run, on a stand-in that does in an instant what a job does: real processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compressor.batch import process
from compressor.batch.agenda import BatchSettings
from compressor.batch.events import Silent
from compressor.batch.run import plan_batch, run_batch
from compressor.batch.scheduler import GRACE, NOTICE
from compressor.batch.shard import Shard
from compressor.errors import OutputExistsError
from tests.report.results import report

HERE = Path(__file__).parent


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put the stand-in in the place of jobs; returns the path of the report that it leaves."""
    path = tmp_path / "a-report.json"
    path.write_text(report().model_dump_json())
    worker = (sys.executable, str(HERE / "stand_in.py"), str(path))
    monkeypatch.setattr(process, "WORKER", worker)
    return path


@pytest.fixture
def batch(tmp_path, stand_in):
    """Return a function that runs jobs on models called as told; called again, it goes on."""

    def settings(*models, **options):
        jobs = "".join(f"  - {{name: {name}, model: {name}}}\n" for name in models)
        (tmp_path / "jobs.yaml").write_text(
            f"defaults: {{data: d, budget: layers=50%}}\njobs:\n{jobs}"
        )
        return BatchSettings(
            manifest=tmp_path / "jobs.yaml",
            out=tmp_path / "runs",
            **{"workers": 2, "resume": True, **options},
        )

    def run(*models, **options):
        return run_batch(settings(*models, **options), log=Silent())

    run.settings = settings
    run.out = tmp_path / "runs"
    run.report = stand_in
    return run


def begun(batch):
    """Return the jobs that were begun, in order, as often as they were."""
    path = batch.out / "begun"
    return path.read_text().split() if path.exists() else []


def lines(batch):
    return [json.loads(line) for line in (batch.out / "results.jsonl").read_text().splitlines()]


def statuses(batch):
    return {line["job"]: line["status"] for line in lines(batch)}


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_job_that_fails_does_not_stop_the_rest(batch):
    summary = batch("fail", "done-1", "crash", "budget", "done-2")
    assert (
        {job.job: job.status for job in summary.jobs}
        == statuses(batch)
        == {
            "fail": "failed",
            "done-1": "done",
            "crash": "failed",
            "budget": "budget_not_met",
            "done-2": "done",
        }
    )
    assert [job.job for job in summary.jobs] == ["fail", "done-1", "crash", "budget", "done-2"]
    assert summary.exit_code == 1
    errors = {line["job"]: line["error"] for line in lines(batch)}
    assert errors["fail"] == "it cannot be done"
    assert "killed by SIGSEGV" in errors["crash"]
    assert "password=*** last words" in errors["crash"]
    assert "hunter22" not in (batch.out / "logs" / "crash.log").read_text()


@pytest.mark.parametrize(
    ("models", "code"), [(("done",), 0), (("done", "budget"), 3), (("fail", "budget"), 1)]
)
def test_the_exit_code_tells_the_worst(models, code, batch):
    assert batch(*models).exit_code == code


def test_a_model_that_only_comes_near_its_budget_is_kept_and_counts_as_unmet(batch):
    near = report().model_copy(update={"unmet": ("latency=5ms: 6 ms",)})
    batch.report.write_text(near.model_dump_json())
    summary = batch("done")
    assert summary.exit_code == 3
    assert (summary.jobs[0].out, summary.jobs[0].error) == ("done", "latency=5ms: 6 ms")
    assert batch("done").finished_before == ("done",)


def test_going_on_does_only_what_is_missing(batch):
    batch("done-1", "fail", "budget")
    summary = batch("done-1", "fail", "budget", "done-2")
    assert summary.finished_before == ("done-1", "budget")
    assert sorted(begun(batch)) == ["budget", "done-1", "done-2", "fail", "fail"]
    assert sorted(line["job"] for line in lines(batch)) == ["budget", "done-1", "done-2", "fail"]


def test_a_finished_job_is_known_by_content_under_another_name(batch, tmp_path):
    batch("done-1")
    text = (tmp_path / "jobs.yaml").read_text().replace("name: done-1", "name: other")
    (tmp_path / "jobs.yaml").write_text(text)
    settings = BatchSettings(manifest=tmp_path / "jobs.yaml", out=batch.out, resume=True)
    assert [job.state for job in plan_batch(settings).jobs] == ["done"]
    summary = run_batch(settings, log=Silent())
    assert [(job.job, job.out) for job in summary.jobs] == [("other", "done-1")]
    assert begun(batch) == ["done-1"]


def test_other_settings_under_the_same_name_leave_the_earlier_result(batch, tmp_path):
    batch("done-1")
    settings = batch.settings("done-1", overrides={"seed": 7})
    summary = run_batch(settings, log=Silent())
    assert summary.jobs[0].out == f"done-1-{summary.jobs[0].key[:8]}"
    seeds = [
        json.loads((batch.out / name / "report.json").read_text())["seed"]
        for name in ("done-1", summary.jobs[0].out)
    ]
    assert seeds == [0, 7]


def test_a_model_that_was_saved_but_not_recorded_is_not_made_again(batch):
    batch("done-1", "done-2")
    kept = [line for line in lines(batch) if line["job"] != "done-1"]
    (batch.out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert batch("done-1", "done-2").finished_before == ("done-1", "done-2")
    assert sorted(begun(batch)) == ["done-1", "done-2"]
    assert statuses(batch) == {"done-1": "done", "done-2": "done"}


def test_a_recorded_job_whose_model_is_gone_is_made_again(batch):
    batch("done")
    (batch.out / "done" / "report.json").unlink()
    (batch.out / "done").rmdir()
    batch("done")
    assert begun(batch) == ["done", "done"]


def test_a_job_is_tried_again_as_often_as_asked(batch):
    summary = batch("fail", "wrong", retry=2)
    assert sorted(begun(batch)) == ["fail", "fail", "fail", "wrong"]
    assert {job.job: job.attempts for job in summary.jobs} == {"fail": 3, "wrong": 1}


def test_failing_fast_begins_nothing_more(batch):
    summary = batch("fail", "done-1", "done-2", workers=1, fail_fast=True)
    assert begun(batch) == ["fail"]
    assert [job.status for job in summary.jobs] == ["failed", "not_started", "not_started"]
    assert summary.exit_code == 1


def test_results_are_refused_without_leave_to_go_on(batch):
    batch("done")
    with pytest.raises(OutputExistsError, match="--resume"):
        batch("done", resume=False)


def test_a_directory_of_something_else_is_refused(batch):
    batch.out.mkdir()
    (batch.out / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="holds no batch"):
        batch("done")


def test_a_dry_run_tells_all_and_does_nothing(batch):
    settings = batch.settings("done-1", "done-2", shard=Shard(1, 2))
    assert [(job.job, job.state, job.line) for job in plan_batch(settings).jobs] == [
        ("done-2", "to do", 4)
    ]
    assert not batch.out.exists()


def test_the_table_has_a_row_for_each_job_with_both_models_figures(batch):
    batch("done", "fail")
    rows = list(csv.DictReader((batch.out / "results.csv").read_text().splitlines()))
    assert [row["job"] for row in rows] == ["done", "fail"]
    expected = report()
    assert float(rows[0]["compressed_accuracy"]) == expected.compressed.accuracy
    assert int(rows[0]["dense_parameters"]) == expected.dense.parameters
    assert rows[1]["error"] == "it cannot be done"
    assert rows[1]["compressed_accuracy"] == ""


def test_many_processes_share_a_directory_and_do_each_job_once(batch):
    models = [f"done-{number}" for number in range(12)]
    settings = [batch.settings(*models, shard=Shard(index, 4)) for index in range(4)]
    # The fifth takes no share: it takes what the others do not hold, and waits for those.
    settings.append(batch.settings(*models))
    threads = [
        threading.Thread(target=run_batch, args=(one,), kwargs={"log": Silent()})
        for one in settings
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(begun(batch)) == sorted(models)
    assert [line["status"] for line in lines(batch)] == ["done"] * 12
    assert (batch.out / "index.html").is_file()


@pytest.fixture
def driven(batch, tmp_path):
    """Return a function that starts a batch as a process of its own, by its command line."""
    started = []

    def start(*models, words=()):
        settings = batch.settings(*models)
        command = [sys.executable, str(HERE / "drive.py"), str(batch.report)]
        options = [str(settings.manifest), "--out", str(settings.out), "--workers", "2", *words]
        one = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[1],
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        )
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_sigterm_finishes_what_is_being_written_and_marks_the_rest(batch, driven):
    words = ["--log-format", "json", "--json", "--workers", "3"]
    running = driven("save", "sleep", "deaf", "done", words=words)
    wait_for(lambda: len(begun(batch)) == 3)
    time.sleep(0.3)
    assert GRACE + 2 * NOTICE < 10  # what it waits for at most; how fast it runs is no test's
    running.send_signal(signal.SIGTERM)
    out, log = running.communicate(timeout=300)
    assert running.returncode == 128 + signal.SIGTERM
    expected = {
        "save": "done",
        "sleep": "interrupted",
        "deaf": "interrupted",
        "done": "not_started",
    }
    assert statuses(batch) == expected
    assert {job["job"]: job["status"] for job in json.loads(out)["jobs"]} == expected
    assert {"time", "level", "job", "stage", "progress"} <= set.intersection(
        *(set(json.loads(line)) for line in log.splitlines())
    )
    again = batch("save", "done")
    assert again.finished_before == ("save",)
    assert again.exit_code == 0


def test_after_kill_9_nothing_runs_on_and_going_on_does_the_rest(batch, driven):
    running = driven("done-1", "sleep", "done-2", "sleep-2")
    wait_for(lambda: sorted(begun(batch)) == ["done-1", "done-2", "sleep", "sleep-2"])
    wait_for(lambda: len(lines(batch)) == 2)
    running.kill()
    running.wait()
    (batch.out / ".sleep.part").mkdir()  # as a job leaves that is killed while it writes
    summary = batch("done-1", "done-2")
    assert summary.finished_before == ("done-1", "done-2")
    wait_for(lambda: not _running(str(batch.report)))


def _running(word):
    """Return the processes on whose command line a word stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if word in words:
            found.append(words)
    return found
