"""A run that was stopped anywhere ends, when it is called again, with the very same checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from compressor.errors import DataError, UsageError
from compressor.pipeline import compress_model
from compressor.pipeline.resume import resume_directory
from compressor.progress import SILENT, Silent
from compressor.settings import (
    CompressSettings,
    DataSettings,
    MethodSettings,
    ModelSettings,
    SweepSettings,
)
from compressor.sweep.run import sweep_model


class Stopping(Silent):
    """Ends the first step whose description is given, after so many items: as ^C, or as told."""

    def __init__(self, description=None, after=0, error=KeyboardInterrupt):
        self.description, self.after, self.error = description, after, error
        self.steps, self.notes = [], []

    def track(self, items, *, description, total):
        self.steps.append(description)
        for index, item in enumerate(items):
            if description == self.description and index == self.after:
                raise self.error
            yield item

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(autouse=True, scope="module")
def _no_page():
    """Leave out the drawings of the page, which take most of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.pipeline.result.report_page", lambda report: "")
        yield


@pytest.fixture
def settings(trained_bert, tmp_path):
    """Return a function that makes settings of a run on the small BERT."""
    return maker(trained_bert, tmp_path)


def maker(trained_bert, root):
    def make(out="small", budget="layers=40%", **changes):
        data = {"data": trained_bert.data[1], "calibration": 60, "limit": 60, "batch_size": 16}
        given = {
            "model": ModelSettings(model=trained_bert.model[0], device="cpu"),
            "data": DataSettings(**{**data, **changes.pop("data", {})}),
            "method": MethodSettings(budget=(budget,)),
            "out": root / out,
            "resume": True,
        }
        return CompressSettings(**{**given, **changes})

    return make


def files(out: Path):
    return {name: (out / name).read_bytes() for name in ("model.safetensors", "plan.json")}


@pytest.fixture(scope="module")
def expected(trained_bert, tmp_path_factory):
    """Return what a run without any cache writes."""
    plain = maker(trained_bert, tmp_path_factory.mktemp("plain"))(resume=False)
    compress_model(plain, progress=SILENT)
    return files(plain.out)


@pytest.mark.parametrize(
    ("stage", "after", "spared"),
    [
        ("measure", 1, ()),
        ("select", 3, ("measure",)),
        ("evaluate dense", 1, ("measure",)),
        ("evaluate compressed", 1, ("measure", "evaluate dense")),
    ],
)
def test_a_stopped_run_is_taken_up_to_the_last_bit(settings, expected, stage, after, spared):
    run = settings()
    with pytest.raises(KeyboardInterrupt):
        compress_model(run, progress=Stopping(stage, after))
    assert not run.out.exists()
    assert resume_directory(run.out).is_dir() == (stage != "measure")
    again = Stopping()
    compress_model(run, progress=again)
    assert files(run.out) == expected
    assert not set(spared) & set(again.steps)
    assert any("Going on" in note for note in again.notes) == (stage != "measure")
    assert not resume_directory(run.out).exists()


def test_what_does_not_fit_any_more_is_told_of_and_made_anew(settings, expected):
    run = settings(data={"calibration": 50})
    with pytest.raises(KeyboardInterrupt):
        compress_model(run, progress=Stopping("evaluate dense"))
    again = Stopping()
    compress_model(settings(), progress=again)
    assert files(run.out) == expected
    assert "measure" in again.steps
    assert any("differs in data" in note for note in again.notes)


def test_damaged_statistics_are_made_anew(settings, expected):
    run = settings()
    with pytest.raises(KeyboardInterrupt):
        compress_model(run, progress=Stopping("select", 1))
    (file,) = resume_directory(run.out).glob("statistics-*")
    file.write_bytes(file.read_bytes()[:-100])
    again = Stopping()
    compress_model(run, progress=again)
    assert files(run.out) == expected
    assert any(str(file) in note and "damaged" in note for note in again.notes)


def test_a_shared_cache_serves_other_budgets_and_stays(settings, expected, tmp_path):
    first = settings("first", "layers=60%", resume=False, cache=tmp_path / "cache")
    compress_model(first, progress=SILENT)
    second = settings("second", resume=False, cache=tmp_path / "cache")
    again = Stopping()
    compress_model(second, progress=again)
    assert not {"measure", "evaluate dense"} & set(again.steps)
    assert files(second.out) == expected
    assert (tmp_path / "cache").is_dir()


def test_what_a_killed_process_was_writing_is_removed(settings, tmp_path):
    run = settings()
    left, kept = tmp_path / ".small.abcd1234", tmp_path / ".small.v2.abcd1234"
    for directory in (left, kept):
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"half")
    compress_model(run, progress=SILENT)
    assert not left.exists()
    assert kept.exists()
    assert {path.name for path in tmp_path.iterdir()} >= {"small", ".small.v2.abcd1234"}


def test_two_runs_on_one_output_are_refused(settings):
    run = settings()
    directory = resume_directory(run.out)
    directory.mkdir()
    with FileLock(directory / ".run.lock"), pytest.raises(UsageError, match="at work"):
        compress_model(run, progress=SILENT)


def test_a_command_that_was_finished_gives_its_report_again(settings):
    run = settings(command="compressor compress it --resume")
    report = compress_model(run, progress=SILENT)
    again = Stopping()
    assert compress_model(run, progress=again) == report
    assert not again.steps
    with pytest.raises(UsageError, match="exists"):
        compress_model(settings(command="compressor compress it otherwise"), progress=SILENT)


def test_an_error_keeps_the_results_and_says_where(settings):
    run, progress = settings(), Stopping("evaluate dense", error=DataError("the disk went away"))
    with pytest.raises(DataError):
        compress_model(run, progress=progress)
    directory = resume_directory(run.out)
    assert any(str(directory) in note for note in progress.notes)
    assert list(directory.glob("statistics-*.safetensors"))


def test_the_cache_holds_nothing_that_runs_code(settings, tmp_path):
    run = settings(resume=False, cache=tmp_path / "cache")
    compress_model(run, progress=SILENT)
    for path in run.cache.iterdir():
        if path.suffix == ".json":
            assert "value" in json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            assert all(isinstance(t, torch.Tensor) for t in load_file(path).values())
        else:
            assert path.suffix == ".lock"


def sweep_like(run, **changes):
    """Return settings of a sweep over the model and data of a run."""
    return SweepSettings(
        model=run.model,
        data=run.data,
        budgets=("layers=60%", "layers=40%"),
        out=run.out.with_name("sweep"),
        **changes,
    )


def figures(sweep):
    return [(point.budget, point.figures) for point in sweep.points]


def test_a_sweep_and_compress_take_what_the_other_kept(settings, expected, tmp_path):
    shared = {"resume": False, "cache": tmp_path / "cache"}
    compress_model(settings("first", "layers=60%", **shared), progress=SILENT)
    swept = Stopping()
    sweep_model(sweep_like(settings(), cache=tmp_path / "cache"), progress=swept)
    assert not {"measure", "evaluate dense"} & set(swept.steps)
    judged = {path.name for path in (tmp_path / "cache").glob("judgement-*")}
    again, run = Stopping(), settings(**shared)
    compress_model(run, progress=again)
    assert not {"measure", "evaluate dense"} & set(again.steps)
    assert {path.name for path in (tmp_path / "cache").glob("judgement-*")} == judged
    assert files(run.out) == expected


def test_a_stopped_sweep_measures_nothing_again(settings, tmp_path):
    run = sweep_like(settings())
    with pytest.raises(KeyboardInterrupt):
        sweep_model(run, progress=Stopping("evaluate", 1))
    assert list(resume_directory(run.out).glob("statistics-*.safetensors"))
    again = Stopping()
    found = sweep_model(run, progress=again)
    assert not {"measure", "evaluate dense"} & set(again.steps)
    assert not resume_directory(run.out).exists()
    plain = sweep_model(run.model_copy(update={"out": tmp_path / "plain"}), progress=SILENT)
    assert figures(found) == figures(plain)
