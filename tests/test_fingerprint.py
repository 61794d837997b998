"""The hash of the code: what a figure depends on changes it, and nothing else does."""

from __future__ import annotations

import pytest

from benchmarks.quality import DEFAULT_ALONE
from compressor.fingerprint import WATCHED, code_version


@pytest.fixture
def package(tmp_path):
    (tmp_path / "methods").mkdir()
    for name in ("methods/guided.py", "methods/decompose.py", "report.py"):
        (tmp_path / name).write_text("one")
    for part in WATCHED:
        if part.endswith(".py"):
            (tmp_path / part).parent.mkdir(exist_ok=True)
            (tmp_path / part).write_text("one")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "whole", "without"),
    [
        ("methods/guided.py", True, False),
        ("methods/decompose.py", True, True),
        ("report.py", False, False),
    ],
)
def test_only_what_a_figure_depends_on_changes_its_version(package, file, whole, without):
    def both():
        left = ("methods/guided.py",)
        return code_version(root=package), code_version(root=package, leave_out=left)

    before = both()
    (package / file).write_text("two")
    after = both()
    assert [a != b for a, b in zip(before, after, strict=True)] == [whole, without]


def test_what_the_default_alone_runs_exists():
    assert code_version() != code_version(leave_out=DEFAULT_ALONE)
    names = [[name] for name in DEFAULT_ALONE]
    assert all(code_version() != code_version(leave_out=name) for name in names)
