"""`compressor measure`: collapse and rank of every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from compressor.cli.flatten import Only
from compressor.cli.options import Overwrite, RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.terminal import view_measurement
from compressor.schema import MeasurementReport
from compressor.settings import DataSettings, MethodSettings, ModelSettings

Result = TypeVar("Result")

Stationarity = Annotated[
    bool,
    typer.Option(
        "--stationarity",
        help="Run backwards too, and tell cos(W, −∇L): 1 where weight decay and loss balance.",
        rich_help_panel="Method",
    ),
]
Csv = Annotated[
    Path | None,
    typer.Option("--csv", help="Write every figure, a line a layer.", rich_help_panel="Run"),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw them by layer: .svg or .png.", rich_help_panel="Run"),
]


def check_files(csv: Path | None, plot: Path | None, *, overwrite: bool) -> None:
    """Refuse files that cannot or may not be written, before anything is loaded.

    Raises:
        UsageError: If a drawing's format is not known.
        OutputExistsError: If a file exists and may not be replaced.
    """
    from compressor.checkpoint.save import refuse_existing_file
    from compressor.report.collapse_plots import check_format

    if plot is not None:
        check_format(plot)
    for path in (csv, plot):
        if path is not None:
            refuse_existing_file(path, overwrite=overwrite)


def write_files(
    report: Result,
    csv: Path | None,
    plot: Path | None,
    *,
    as_csv: Callable[[Result], str],
    draw: Callable[[Result, Path], None],
) -> Result:
    """Write the files that were asked for, and return the report they were made of."""
    from compressor.checkpoint.save import write_file

    if csv is not None:
        write_file(csv, as_csv(report))
    if plot is not None:
        draw(report, plot)
    return report


def measure(
    model: ModelSettings,
    data: DataSettings,
    method: Annotated[MethodSettings, Only(("include", "exclude", "blockwise"))],
    settings: RunSettings,
    *,
    stationarity: Stationarity = False,
    csv: Csv = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure neural collapse and rank of every layer on labelled data.

    Layers that compressor factorized are measured as the products of their factors.

    Examples:
    compressor measure bert --data docs.csv --max-length 64
    compressor measure tf_efficientnet_lite0 --data photos --limit 500 --json
    compressor measure bert --data docs.csv --stationarity --plot layers.svg
    """
    check_files(csv, plot, overwrite=overwrite)

    def work(progress: Progress) -> MeasurementReport:
        from compressor.pipeline import measure_model
        from compressor.report.collapse_plots import draw_measurement
        from compressor.report.measured import measurement_csv

        report = measure_model(
            model,
            data,
            method,
            stationarity=stationarity,
            seed=settings.seed,
            progress=progress,
        )
        return write_files(report, csv, plot, as_csv=measurement_csv, draw=draw_measurement)

    run(work, settings, view=view_measurement, shared=True)
