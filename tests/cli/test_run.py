import json
import sys
import warnings

from pydantic import BaseModel
from rich.console import Group
from rich.table import Table

from compressor.cli.options import RunSettings
from compressor.cli.run import run


class Found(BaseModel):
    value: int


def chatty(progress):
    """Do what careless libraries do: print, warn, report."""
    sys.stdout.write("from a library")
    warnings.warn("about a library", stacklevel=1)
    for _ in progress.track([1], description="stage", total=1):
        pass
    return Found(value=3)


def test_json_is_all_there_is_on_stdout(capsys):
    run(chatty, RunSettings(as_json=True), view=lambda found: f"value {found.value}")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"value": 3}
    assert "from a library" in captured.err
    assert "stage: 1 in " in captured.err


def test_people_get_the_view(capsys):
    run(chatty, RunSettings(), view=lambda found: f"value {found.value}")
    assert capsys.readouterr().out == "value 3\n"


def test_lines_that_go_to_a_file_have_no_padding(capsys):
    table = Table("name", "figure")
    table.add_row("short", "1")
    run(chatty, RunSettings(quiet=True), view=lambda found: Group(table, "end  "))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "end"
    assert all(line == line.rstrip() for line in lines)


def test_quiet_shows_no_progress(capsys):
    run(chatty, RunSettings(quiet=True), view=lambda found: f"value {found.value}")
    assert "stage" not in capsys.readouterr().err


def test_warnings_of_libraries_are_dropped_and_our_own_shown(capsys):
    def warns(_progress):
        for module in ("some_library.loader", "compressor.data.pictures"):
            warnings.warn_explicit(f"by {module}", UserWarning, "f.py", 1, module=module)
        return Found(value=1)

    run(warns, RunSettings(), view=str)
    err = capsys.readouterr().err
    assert "warning: by compressor.data.pictures\n" in err
    assert "some_library" not in err
