"""A path that somebody mistyped, and a file that cannot be read: one message, no error numbers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from compressor.cli import main
from compressor.demo import MODEL
from tests import language

VIT = str(MODEL)
DIGITS = ["--data", "sklearn:digits", "--limit", "20", "--device", "cpu"]
LONG = "n" * 300
BUDGET = ["--budget", "layers=50%"]
DENIED = ("permission denied", "Give this user the right")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> None:
    """Work in a directory with something of each sort that may be named by mistake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("COMPRESSOR_DEBUG", raising=False)
    Path("file").write_text("text\n")
    for folder in ("folder", "folder.pt", "folder.safetensors", "folder.gguf"):
        Path(folder).mkdir()
    Path("broken").symlink_to("gone")
    Path("jobs.yaml").write_text(
        f"jobs:\n  - {{model: {VIT}, data: ./none, checkpoint: none.pt, budget: layers=50%}}\n"
    )


@pytest.fixture
def refused(capsys):
    """Return a function that makes a call and sees it refused in one line with all of ``saying``.

    No error number of the system stands there, and nothing on stdout.
    """

    def check(words, *saying, code):
        found = main([str(word) for word in words])
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert found == code, line
        assert "Errno" not in line
        assert "unexpected" not in line
        assert out == ""
        for part in saying:
            assert part in line, line

    return check


def shut(monkeypatch, *paths: Path | str) -> None:
    """Let the system refuse these paths, as it does to a user without rights (root has all)."""
    kept, listed = Path.open, os.scandir
    names = {str(path) for path in paths}

    def refuse(path):
        if str(path) in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def opened(path, *words, **named):
        refuse(path)
        return kept(path, *words, **named)

    def scanned(path="."):
        refuse(path)
        return listed(path)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "scandir", scanned)


MISTYPED = [
    (["inspect", "./none"], "./none does not exist", "Expected"),
    (["inspect", "broken"], "broken is a link to gone", "Expected"),
    (["inspect", "file"], "file is a file", "Expected"),
    (["inspect", "none.gguf"], "none.gguf does not exist", "Expected"),
    (["inspect", ""], "its name is empty", "Expected"),
    (["inspect", LONG], "file name too long", "Check the path"),
    (["inspect", "none.py:build"], "none.py", "does not exist", "Expected"),
    (["inspect", "folder:build"], "No model", "Expected"),
    (["evaluate", VIT, *DIGITS, "--checkpoint", "none.pt"], "none.pt", "does not exist", ".pt"),
    (["evaluate", VIT, *DIGITS, "--checkpoint", "none.gguf"], "none.gguf", "does not exist"),
    (["evaluate", VIT, *DIGITS, "--checkpoint", "folder.pt"], "it is a directory", ".pt"),
    (["evaluate", VIT, *DIGITS, "--checkpoint", "folder.safetensors"], "it is a directory"),
    (["evaluate", VIT, *DIGITS, "--checkpoint", "folder.gguf"], "it is a directory"),
    (["compare", VIT, VIT, *DIGITS, "--other-checkpoint", "none.pt"], "none.pt", "does not exist"),
    (["compare", VIT, "./none", *DIGITS], "./none does not exist", "Expected"),
    (["evaluate", VIT, "--data", "none.csv"], "none.csv does not exist", "Expected"),
    (["evaluate", VIT, "--data", "broken"], "broken is a link to gone", "Expected"),
    (["evaluate", VIT, "--data", f"{LONG}.csv"], "file name too long", "Check the path"),
    (["evaluate", VIT, *DIGITS, "--test-data", "./none"], "./none does not exist", "Expected"),
    (["measure", VIT, "--data", "./none"], "./none does not exist", "Expected"),
    (["sweep", VIT, "--data", "./none", "--out", "out"], "./none does not exist", "Expected"),
    (["sweep", VIT, *DIGITS, "--out", "broken"], "broken is a link to gone", "--out"),
    (["plan", VIT, *DIGITS, *BUDGET, "--out", "broken"], "broken is a link to gone", "--out"),
    (["compress", VIT, *DIGITS, "--plan", "none.json", "--out", "out"], "none.json does not exist"),
    (["compress", VIT, *DIGITS, "--plan", "folder", "--out", "out"], "folder", "is a directory"),
    (["compress", VIT, "--data", "./none", *BUDGET, "--out", "out"], "./none does not exist"),
    (["batch", "none.yaml"], "none.yaml", "does not exist", "Expected a YAML file"),
    (["batch", "folder"], "folder", "is a directory", "Expected a YAML file"),
    (["batch", "jobs.yaml"], "none.pt does not exist", "manifest's directory"),
    (["batch", "jobs.yaml", "--out", "broken"], "no directory", "--out"),
    (["report", "none"], "none", "does not exist", "Name directories"),
    (["report", "folder"], "folder/report.json", "does not exist", "Name directories"),
    (["verify", "none"], "none", "does not exist", "Expected"),
    (["verify", "file"], "file", "is a file", "Expected"),
    (["export", "./none", "--to", "dense", "--out", "out"], "./none does not exist", "Expected"),
]


@pytest.mark.parametrize(("words", "saying"), [(case[0], case[1:]) for case in MISTYPED])
def test_a_path_that_is_mistyped(words, saying, refused):
    refused(words, *saying, code=2)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["inspect", "net.py:build"], "net.py"),
        (["inspect", "net.gguf"], "net.gguf"),
        (["inspect", "saved"], "saved/config.json"),
        (["evaluate", VIT, *DIGITS, "--checkpoint", "net.pt"], "net.pt"),
        (["evaluate", VIT, *DIGITS, "--checkpoint", "net.safetensors"], "net.safetensors"),
        (["compress", VIT, *DIGITS, "--plan", "plan.json", "--out", "out"], "plan.json"),
        (["batch", "shut.yaml"], "shut.yaml"),
        (["report", "saved"], "saved/report.json"),
    ],
)
def test_a_file_that_cannot_be_read(words, name, refused, monkeypatch):
    Path("saved").mkdir()
    for sort in ("config.json", "report.json"):
        Path("saved", sort).write_text("{}")
    Path(name).write_text("x")
    shut(monkeypatch, name)
    refused(words, name, *DENIED, code=1)


def test_class_folders_that_cannot_be_read_are_not_left_out(refused, monkeypatch):
    for label in ("cat", "dog", "owl"):
        for index in range(10):
            path = Path("photos", label, f"{index}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (25 * index, 0, 0)).save(path)
    words = ["evaluate", VIT, "--data", "photos"]
    shut(monkeypatch, "photos/dog")
    refused(words, "Cannot read the data photos/dog", *DENIED, code=1)


def test_images_and_texts_that_cannot_be_read(refused, monkeypatch):
    for index in range(40):
        path = Path("photos", str(index % 10), f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (5 * index, 0, 0)).save(path)
    Path("words.txt").write_text(language.text())
    language.build("llama").save_pretrained("net")
    language.tokenizer().save_pretrained("net")
    shut(monkeypatch, "words.txt", *Path("photos").rglob("*.png"))
    refused(["evaluate", VIT, "--data", "photos", "--strict"], "(permission denied)", code=1)
    refused(["evaluate", "net", "--data", "words.txt"], "words.txt", *DENIED, code=1)
