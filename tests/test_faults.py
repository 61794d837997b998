"""Whatever ends a run: its output is complete or absent, and its inputs are what they were."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import compressor
from benchmarks.faults import Fault, digests, start, wait
from compressor.checkpoint.whole import (
    move_into_place,
    remove_leftovers,
    sibling,
    signals_held,
    write_file,
)
from compressor.cli import main
from compressor.cli.endings import EndedBySignal, ended_by_signals
from compressor.errors import CheckpointError, OutputExistsError
from compressor.stopwatch import Stopwatch
from tests.trained import FACTORY, ROOT, texts, write_table

QUICK = ("--method", "svd", "--calibration", "40", "--limit", "20", "--device", "cpu", "--quiet")
BUDGET = ("--budget", "layers=60%")


def compressing(case, out: Path, *more: str) -> int:
    """Run the main job with the smallest limits that work."""
    return main(["compress", *case.words, *QUICK, *BUDGET, "--out", str(out), *more])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Signals and kills.


@pytest.mark.slow
def test_saving_is_whole_when_it_is_ended_at_any_step():
    """Kills, signals, a full disk, a removed directory; with and without an earlier output."""
    words = ["-m", "benchmarks.faults", "--every-step", "--stride", "8", "--json"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert done.returncode == 0
    assert found["trials"] >= 40
    for name in ("SIGKILL", "SIGTERM", "SIGINT"):
        assert found["faults"][name]["absent"] > 0
        assert found["faults"][name]["as before"] > 0
        assert found["faults"][name]["complete"] > 0


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [
        *((s, signal.SIGTERM, 143) for s in ("load", "measure", "plan", "evaluate", "save")),
        ("measure", signal.SIGINT, 130),
        ("save", signal.SIGINT, 130),
    ],
)
def test_a_signal_in_any_stage_leaves_nothing(
    stage, number, code, *, trained_cnn, tmp_path, monkeypatch, capsys
):
    timed = Stopwatch.stage

    def ended(self, name):
        if name == stage:
            os.kill(os.getpid(), number)
        return timed(self, name)

    monkeypatch.setattr(Stopwatch, "stage", ended)
    # A shell has its background jobs ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert compressing(trained_cnn, tmp_path / "out") == code
    signal.signal(signal.SIGINT, before)
    assert "error: " in capsys.readouterr().err
    assert names(tmp_path) == []


def test_signals_wait_for_moments_that_must_not_be_cut():
    done = []

    def move() -> None:
        with ended_by_signals(), signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done.append("moved")

    with pytest.raises(EndedBySignal):
        move()
    assert done == ["moved"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handlers_of_the_program_around_are_left_alone():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".out.abcd1234").mkdir()
    (tmp_path / ".out.abcd1234" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".other.abcd1234").mkdir()
    with sibling(tmp_path / "out") as living:
        assert names(tmp_path) == [".other.abcd1234", living.name]
        remove_leftovers(tmp_path / "out")  # a living process's is locked
        assert living.is_dir()
    assert names(tmp_path) == [".other.abcd1234"]


# Two processes, and directories that come and go.


def test_two_processes_with_one_output(tmp_path):
    """The second one to finish finds the first one's result, and leaves it alone."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    move_into_place(tmp_path / "first", tmp_path / "out", overwrite=False)
    with pytest.raises(OutputExistsError, match="by another process meanwhile"):
        move_into_place(tmp_path / "second", tmp_path / "out", overwrite=False)
    assert (tmp_path / "out" / "file").read_text() == "first"
    move_into_place(tmp_path / "second", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "second"


@pytest.mark.parametrize("exchange", [True, False])
def test_an_output_that_cannot_be_replaced_stays(exchange, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    if not exchange:
        monkeypatch.setattr("compressor.checkpoint.whole._exchange", lambda one, other: False)
    rename = Path.rename

    def refused(self, target):
        if Path(target).name == "out" and self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").write_text("new")
    monkeypatch.setattr(Path, "rename", refused)
    if exchange:
        move_into_place(tmp_path / "new", tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "file").read_text() == "new"
        return
    with pytest.raises(OSError, match="Input/output error"):
        move_into_place(tmp_path / "new", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_a_working_directory_that_was_removed(tmp_path, monkeypatch, capsys, trained_cnn):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert compressing(trained_cnn, Path("out")) == 1
    assert "Traceback" not in capsys.readouterr().err


# Disks.


def test_a_small_disk_that_fills_up(tmp_path):
    """A file system of 64 kB; mounting one needs rights that not everybody has."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    mounted = shutil.which("mount") and subprocess.run(words, capture_output=True, check=False)
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a file system")
    try:
        with pytest.raises(CheckpointError, match=r"Cannot write .*no space"):
            write_file(disk / "report.html", "x" * 200_000)
        assert names(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_directory(tmp_path, trained_cnn, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert compressing(trained_cnn, tmp_path / "locked" / "out") == 1
    assert "not writable" in capsys.readouterr().err


def test_a_read_only_file_system(trained_cnn, capsys):
    assert compressing(trained_cnn, Path("/proc/nowhere/out")) in (1, 2)
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert "Traceback" not in err


# Memory, workers and clocks.


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_memory_that_runs_out_is_said_so(error, monkeypatch, trained_cnn, tmp_path, capsys):
    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("compressor.pipeline.steps.load_model", full)
    assert compressing(trained_cnn, tmp_path / "out") == 1
    assert "error: out of memory" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_a_tensor_that_no_machine_holds_is_out_of_memory():
    from compressor.room import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


class Dying(Dataset):
    """A data set whose worker ends without a word."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index >= 32:
            os._exit(1)
        return torch.ones(16) * index, index % 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_data_loader_worker_that_dies_ends_the_run(tmp_path):
    """In a process of its own: torch tells of a dead worker again, whatever runs by then."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 2))
    loader = DataLoader(Dying(), batch_size=16, num_workers=1, multiprocessing_context="fork")

    def measuring(out: Path) -> int:
        del out
        try:
            compressor.measure(model, loader, method="svd")
        except (RuntimeError, OSError, EOFError):  # the pipe may be the first to tell
            return 1
        return 0

    child = start(measuring, Fault("none"), tmp_path / "out", tmp_path / "log")
    assert wait(child) == 1, (tmp_path / "log").read_text()


def test_a_clock_that_goes_back_changes_no_result(trained_cnn, tmp_path, monkeypatch):
    now = [2e9]

    def back():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    assert compressing(trained_cnn, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert all(seconds >= 0 for seconds in report["seconds"].values())


# Names and links.


def test_a_name_that_is_no_utf_8_is_refused(trained_cnn, tmp_path, capsys):
    name = os.fsdecode(b"out-\xff")
    assert compressing(trained_cnn, tmp_path / name) == 2
    assert "no text in UTF-8" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_image_files_whose_names_are_no_utf_8(trained_vit, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(trained_vit.data[1], photos)
    good, bad = sorted((photos / "red").iterdir())[:2]
    good.rename(photos / "red" / os.fsdecode(b"g\xff.png"))
    bad.rename(photos / "red" / os.fsdecode(b"b\xfe.png"))
    (photos / "red" / os.fsdecode(b"b\xfe.png")).write_bytes(b"no image")
    words = ["evaluate", *trained_vit.model, "--data", str(photos), "--device", "cpu", "--json"]
    assert main(words) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out)["samples"] > 0
    (photos / "red").rename(photos / os.fsdecode(b"r\xff"))
    assert main(words) == 1
    assert "Rename the folder" in capsys.readouterr().err


@pytest.mark.parametrize(("length", "code"), [(250, 0), (256, 2), (5000, 2)])
def test_very_long_names(length, code, trained_cnn, tmp_path, capsys):
    assert compressing(trained_cnn, tmp_path / ("x" * length)) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "unexpected" not in err
    if code:
        assert names(tmp_path) == []
    assert main(["inspect", "y/" * 2000]) == 2
    assert "unexpected" not in capsys.readouterr().err


def test_links_are_followed_on_the_way_and_never_replaced(trained_bert, tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "bert").symlink_to(trained_bert.model[0])
    words = ["compress", str(tmp_path / "bert"), *trained_bert.data, *QUICK, *BUDGET, "--out"]
    assert main([*words, str(tmp_path / "link" / "out")]) == 0
    assert (tmp_path / "real" / "out" / "config.json").is_file()
    (tmp_path / "again").symlink_to(tmp_path / "real" / "out")
    assert main([*words, str(tmp_path / "again"), "--overwrite"]) == 2
    assert "no directory" in capsys.readouterr().err
    assert (tmp_path / "again").is_symlink()


def test_windows_line_ends(trained_bert, tmp_path, capsys):
    for name, count, seed in (("train", 60, 1), ("test", 30, 2)):
        path = write_table(tmp_path / "texts" / f"{name}.csv", texts(count, seed=seed))
        unix = path.read_bytes().replace(b"\r\n", b"\n")
        path.write_bytes(b"\xef\xbb\xbf" + unix.replace(b"\n", b"\r\n"))
    words = [*trained_bert.model, "--data", str(tmp_path / "texts"), *QUICK]
    plan = tmp_path / "plan.json"
    assert main(["plan", *words, *BUDGET, "--out", str(plan)]) == 0
    plan.write_bytes(b"\xef\xbb\xbf" + plan.read_bytes().replace(b"\n", b"\r\n"))
    replayed = ["--plan", str(plan), "--out", str(tmp_path / "out")]
    assert main(["compress", *words, *replayed, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.partition("\n{\n")[2].join(("{\n", "")))
    assert report["data"]["classes"] == 3


# Inputs.


def test_inputs_are_what_they_were(trained_bert, trained_cnn, tmp_path):
    given = [Path(trained_bert.model[0]), Path(trained_bert.data[1]), Path(trained_cnn.model[2])]
    before = [digests(path) for path in given]
    assert compressing(trained_bert, tmp_path / "bert") == 0
    assert compressing(trained_cnn, tmp_path / "cnn") == 0
    assert [digests(path) for path in given] == before


@pytest.mark.parametrize("place", ["model", "above", "data", "plan"])
def test_an_output_that_is_an_input_is_refused(place, trained_bert, tmp_path, capsys):
    model, data = tmp_path / "in" / "bert", tmp_path / "data.csv"
    shutil.copytree(trained_bert.model[0], model)
    write_table(data, texts(60, seed=1))
    before = [digests(tmp_path), names(tmp_path)]
    out = {"model": model, "above": model.parent, "data": data, "plan": data}[place]
    command = "plan" if place == "plan" else "compress"
    words = [str(model), "--data", str(data), *QUICK, *BUDGET, "--out", str(out), "--overwrite"]
    assert main([command, *words]) == 2
    assert "Inputs are never changed" in capsys.readouterr().err
    assert [digests(tmp_path), names(tmp_path)] == before


def test_a_factory_is_an_input_too(tmp_path, capsys):
    file = tmp_path / "net.py"
    file.write_text(Path(FACTORY.rpartition(":")[0]).read_text())
    words = [f"{file}:build", "--data", "sklearn:digits", *QUICK, *BUDGET]
    assert main(["plan", *words, "--out", str(file), "--overwrite"]) == 2
    assert "Inputs are never changed" in capsys.readouterr().err
    assert "def build" in file.read_text()


def test_digests_see_a_change(tmp_path):
    """The comparison that the tests above stand on."""
    (tmp_path / "a").write_bytes(np.arange(4).tobytes())
    before = digests(tmp_path)
    (tmp_path / "a").write_bytes(np.arange(5).tobytes())
    assert digests(tmp_path) != before
