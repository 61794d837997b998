import io
import json
import re

import pytest
from rich.console import Console

from compressor.cli import main
from compressor.errors import CheckpointError, UsageError
from compressor.report.runs import (
    ComparedRun,
    ComparedRuns,
    compare_runs,
    read_report,
    run_titles,
    runs_page,
    view_runs,
)
from compressor.schema import LatencyFigures, Report, SpeedFigures

from .results import report
from .test_html import HOSTILE, Page


@pytest.fixture
def runs(tmp_path):
    """Return two directories with a report each, of one model and the same test samples."""
    for name, accuracy in (("first", 0.917), ("second", 0.88)):
        (tmp_path / name).mkdir()
        text = report(compressed=accuracy).model_dump_json()
        (tmp_path / name / "report.json").write_text(text)
    return [tmp_path / "first", tmp_path / "second"]


def test_several_are_shown_side_by_side_in_80_columns(runs):
    compared = compare_runs(runs)
    assert compared.notes == ()
    stream = io.StringIO()
    Console(file=stream, width=80).print(view_runs(compared))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    for words in ("91.7 %", "88.0 %", "−0.5", "−4.2", "36.9 MB"):
        assert words in stream.getvalue()


def test_long_names_are_cut_and_never_a_figure(runs):
    compared = compare_runs(runs)
    first = compared.runs[0].report
    small = first.compressed.model_copy(update={"kl_to_dense": 2.944e-08, "parameters": 10**9})
    wide = first.model_copy(update={"compressed": small, "method": "measured-kl"})
    names = ("a/b/here/one-with-a-long-name", "a/b/there/another-with-a-long-name")
    many = ComparedRuns(runs=tuple(ComparedRun(directory=name, report=wide) for name in names))
    assert run_titles(many) == ["here/one-with-a-long-name", "there/another-with-a-long-name"]
    stream = io.StringIO()
    Console(file=stream, width=80).print(view_runs(many))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if "2.94e-08" in line]
    assert len(rows) == 2
    assert all(row.count("…") == 2 for row in rows)  # the run's name and the method's
    assert rows[0].split()[0] != rows[1].split()[0]


def test_runs_are_called_by_what_differs(runs):
    report = compare_runs(runs).runs[0].report
    for names, titles in (
        (("x/a", "x/b"), ["a", "b"]),
        (("a", "x/a"), ["a", "x/a"]),
        (("x/a",), ["x/a"]),
        (("/x/a", "/x/a/b"), ["a", "a/b"]),
    ):
        made = [ComparedRun(directory=name, report=report) for name in names]
        assert run_titles(ComparedRuns(runs=tuple(made))) == titles


def test_what_does_not_compare_is_said(runs):
    changed = report(samples=7)
    data = changed.data.model_copy(
        update={"test": changed.data.test.model_copy(update={"sha256": "cd" * 32})}
    )
    other = changed.model_copy(update={"data": data, "model_sha256": "ef" * 32})
    (runs[1] / "report.json").write_text(other.model_dump_json())
    notes = compare_runs(runs).notes
    assert "different samples" in notes[0]
    assert "different dense models" in notes[1]


def test_the_page_has_the_time_at_each_batch_size(runs):
    timed = LatencyFigures(
        batch=32, rounds=5, dense=8.0, compressed=3.0, dense_memory=2, compressed_memory=1
    )
    compared = compare_runs(runs)
    slow, fast = compared.runs
    speed = SpeedFigures(runtime="eager", threads=2, input="64", batches=(timed,))
    fast = fast.model_copy(update={"report": fast.report.model_copy(update={"speed": speed})})
    page = Page(runs_page(compared.model_copy(update={"runs": (slow, fast)})))
    assert re.search(r"time of dense, batch 32\s*–\s*37\.5 %", page.text)


def test_the_command_compares_prints_json_and_writes_a_page(runs, tmp_path, capsys):
    words = ["report", *map(str, runs)]
    page = tmp_path / "page.html"
    assert main([*words, "--html", str(page), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [run["report"]["compressed"]["accuracy"] for run in printed["runs"]] == [0.917, 0.88]
    assert "side by side" in Page(page.read_text()).text
    assert main([*words, "--html", str(page)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--html", str(page), "--overwrite", "--quiet"]) == 0


def test_one_run_is_shown_and_rendered_again(runs, capsys):
    page = runs[0] / "report.html"
    assert main(["report", str(runs[0]), "--html", str(page)]) == 0
    assert "Good: with 2,568 test samples" in capsys.readouterr().out
    assert "before-after" in Page(page.read_text()).ids


def test_hostile_directories_stay_text(runs):
    compared = compare_runs(runs)
    hostile = compared.runs[0].model_copy(update={"directory": HOSTILE})
    page = Page(runs_page(compared.model_copy(update={"runs": (hostile,), "notes": (HOSTILE,)})))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(HOSTILE) >= 3


def test_reports_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UsageError, match="compressor compress"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"version": 1}')
    with pytest.raises(CheckpointError, match=r"field|Field|model"):
        read_report(tmp_path)
    newer = {**json.loads(report().model_dump_json()), "novelty": 1}
    (tmp_path / "report.json").write_text(json.dumps(newer))
    with pytest.raises(CheckpointError, match=r"novelty.*newer release"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text(report().model_dump_json())
    assert isinstance(read_report(tmp_path / "report.json"), Report)
