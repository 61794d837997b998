"""`compressor compare`: how collapse and rank moved from one checkpoint to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.flatten import Only
from compressor.cli.measure import Csv, Plot, Stationarity, check_files, write_files
from compressor.cli.options import Overwrite, RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.measured import view_comparison
from compressor.schema import ComparisonReport
from compressor.settings import DataSettings, MethodSettings, ModelSettings

Other = Annotated[
    str,
    typer.Argument(
        metavar="OTHER",
        help="The second checkpoint, named as MODEL is: later in training, or compressed.",
        show_default=False,
    ),
]
OtherCheckpoint = Annotated[
    Path | None,
    typer.Option(
        readable=False, help="The second one's weights lying apart.", rich_help_panel="Model"
    ),
]


def compare(
    model: ModelSettings,
    other: Other,
    data: DataSettings,
    method: Annotated[MethodSettings, Only(("include", "exclude"))],
    settings: RunSettings,
    *,
    other_checkpoint: OtherCheckpoint = None,
    stationarity: Stationarity = False,
    csv: Csv = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two checkpoints of one architecture: how collapse and rank of each layer moved.

    Both are measured on the same samples. Options of the model hold for both.

    Examples:
    compressor compare epoch-1 epoch-3 --data docs.csv --plot moved.svg
    compressor compare bert small --data docs.csv --csv moved.csv
    compressor compare vit vit --checkpoint a.pt --other-checkpoint b.pt --data d
    """
    check_files(csv, plot, overwrite=overwrite)

    def work(progress: Progress) -> ComparisonReport:
        from compressor.pipeline import compare_models
        from compressor.report.collapse_plots import draw_comparison
        from compressor.report.measured import comparison_csv

        report = compare_models(
            model,
            model.model_copy(update={"model": other, "checkpoint": other_checkpoint}),
            data,
            method,
            stationarity=stationarity,
            seed=settings.seed,
            progress=progress,
        )
        return write_files(report, csv, plot, as_csv=comparison_csv, draw=draw_comparison)

    run(work, settings, view=view_comparison)
