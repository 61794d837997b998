import io

import pytest
from rich.console import Console

from compressor.cli.progress import TerminalProgress


def test_away_from_a_terminal_a_stage_is_one_line():
    stream = io.StringIO()
    with TerminalProgress(Console(file=stream, force_terminal=False)) as progress:
        assert list(progress.track(range(5), description="measure", total=5)) == [0, 1, 2, 3, 4]
        progress.note("2 images skipped [a.png]")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("measure: 5 in ")
    assert second == "2 images skipped [a.png]"


def test_on_a_terminal_a_bar_is_drawn_and_taken_away():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with TerminalProgress(console) as progress:
        for outer in progress.track(range(2), description="plan", total=2):
            for _ in progress.track([outer], description="layer", total=None):
                pass
    assert "0/2" in stream.getvalue()
    assert "plan: 2 in " in stream.getvalue()


def test_an_error_in_the_work_comes_through():
    with TerminalProgress(Console(file=io.StringIO())) as progress:
        items = progress.track(map(int, ["1", "x"]), description="stage", total=2)
        with pytest.raises(ValueError, match="'x'"):
            list(items)
