import json

import pytest
from rich.console import Console

from compressor.batch.schema import BatchSummary, JobResult
from compressor.report.overview import counts_sentence, overview_page, view_batch
from tests.report.results import report

HOSTILE = "<script>alert(1)</script>"


def job(name, status="done", **of):
    whole = report()
    figures = {"dense": whole.dense, "compressed": whole.compressed} if status == "done" else {}
    return JobResult(
        job=name,
        key=name,
        status=status,
        model="m",
        data="d",
        method="nc1",
        budget=("layers=50%",),
        seed=0,
        out=name if status == "done" else None,
        **{**figures, **of},
    )


def smaller(whole, parameters, accuracy, **of):
    figures = whole.compressed.model_copy(update={"parameters": parameters, "accuracy": accuracy})
    return whole.model_copy(update={"compressed": figures, **of})


WHOLE = report()
HALF = WHOLE.dense.parameters // 2
NAMES = ("alike", "large", "small", "worse", "other")
JOBS = [*map(job, NAMES), job("gone", "failed", error=HOSTILE)]
REPORTS = {
    # A weight less than "large", and worse: not a size that anybody would choose it for.
    "alike": smaller(WHOLE, HALF - 1, 0.85),
    "large": smaller(WHOLE, HALF, 0.9),
    "small": smaller(WHOLE, HALF // 2, 0.8),
    "worse": smaller(WHOLE, 3 * HALF // 4, 0.7, method="svd"),
    "other": smaller(WHOLE, HALF // 2, 0.8, model_sha256="another"),
}
PAGE = overview_page("jobs.yaml", JOBS, REPORTS)


def test_the_page_shows_a_frontier_for_each_dense_model():
    assert PAGE.count("<svg") == 1  # of one job alone there is nothing to draw
    assert PAGE.count('<section id="model-') == 2


def test_jobs_that_no_other_beats_are_marked():
    rows = [row for row in PAGE.split("<tr") if "/report.html" in row]
    marked = {row.split('/report.html">')[1].split("<")[0] for row in rows if "chosen" in row}
    assert marked == {"large", "small", "other"}


def test_errors_are_told_and_escaped():
    assert "&lt;script&gt;" in PAGE
    assert HOSTILE not in PAGE


def test_every_job_links_to_its_report():
    for name in NAMES:
        assert f'href="{name}/report.html"' in PAGE


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["done", "failed", "done"], "3 jobs: 2 done, 1 failed."),
        (["not_started"], "1 jobs: 1 not started."),
        ([], "No jobs."),
    ],
)
def test_the_sentence_counts(statuses, expected):
    assert counts_sentence(statuses) == expected.replace("1 jobs", "1 job")


def test_the_view_fits_eighty_columns():
    summary = BatchSummary(
        manifest="jobs.yaml",
        out="runs",
        shard=None,
        jobs=(
            *(one for one in JOBS[:4]),
            job("a-very-long-name-of-a-job-indeed", "budget_not_met"),
        ),
        finished_before=("large",),
        seconds=3.0,
    )
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(view_batch(summary))
    printed = captured.get()
    assert "…" not in printed.split("a-very")[0]
    assert "budget not met" in printed
    assert summary.exit_code == 3
    assert json.loads(summary.model_dump_json())["jobs"][0]["job"] == "alike"
