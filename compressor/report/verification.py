"""What `verify` shows."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.report.figures import duration
from compressor.schema import VerificationReport

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def view_verification(report: VerificationReport) -> RenderableType:
    """Return a verdict and a line for each check."""
    failed = [check.name for check in report.checks if check.outcome == "failed"]
    skipped = [check.name for check in report.checks if check.outcome == "skipped"]
    if failed:
        verdict = f"{report.directory} is not what was saved. Failed: {', '.join(failed)}."
    elif skipped:
        verdict = f"{report.directory}: nothing is wrong; not checked: {', '.join(skipped)}."
    else:
        verdict = f"{report.directory} is what was saved, and computes what it did."
    table = Table.grid(padding=(0, 2))
    for check in report.checks:
        # As Text: a name that comes from a file is no markup.
        outcome = Text(check.outcome, style=STYLES[check.outcome])
        table.add_row(Text(check.name), outcome, Text(check.detail))
    return Group(
        Text(verdict, style="bold"),
        Text(),
        table,
        Text(),
        Text(f"time  {duration(report.seconds)}", style="dim"),
    )
