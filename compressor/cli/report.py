"""`compressor report`: finished runs, one again or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from compressor.cli.options import Json, Overwrite, Quiet, RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.runs import ComparedRuns, compare_runs, runs_page, view_runs
from compressor.report.terminal import view_report


def report(
    *,
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            readable=False,
            help="Directories that compress wrote.",
            show_default=False,
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page: of one run its report, of several a comparison.",
            rich_help_panel="Run",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare finished runs side by side, or show one again; nothing is loaded or measured.

    Examples:
    compressor report small
    compressor report small smaller --html comparison.html
    compressor report small --html small/report.html --overwrite
    """
    from compressor.checkpoint.save import refuse_existing_file, write_file

    if html is not None:
        refuse_existing_file(html, overwrite=overwrite)

    def work(progress: Progress) -> ComparedRuns:
        compared = compare_runs(directories)
        if html is not None:
            from compressor.report.html import report_page

            runs = compared.runs
            single = len(runs) == 1
            write_file(html, report_page(runs[0].report) if single else runs_page(compared))
            progress.note(f"page: {html}")
        return compared

    def view(compared: ComparedRuns) -> RenderableType:
        if len(compared.runs) == 1:
            return view_report(compared.runs[0].report)
        return view_runs(compared)

    run(work, RunSettings(as_json=as_json, quiet=quiet), view=view)
