"""`compressor demo`: the main job on a bundled model and data, with no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.options import BatchSize, Device, Limit, Overwrite, RunSettings
from compressor.cli.run import require_met, run, typed_command
from compressor.demo import DEFAULT_OUT, demo_settings
from compressor.progress import Progress
from compressor.report.terminal import view_report
from compressor.schema import Report
from compressor.settings import MethodSettings

DEFAULT_BUDGET = ("layers=50%",)


def demo(
    *,
    method: MethodSettings,
    settings: RunSettings,
    device: Device = "auto",
    batch_size: BatchSize = None,
    limit: Limit = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"Directory to write; an earlier demo's in {DEFAULT_OUT} is replaced otherwise.",
            rich_help_panel="Run",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compress a bundled vision transformer on scikit-learn's digits: no network, under a minute.

    Examples:
    compressor demo
    compressor demo --budget layers=30% --method svd --out demo-svd
    """

    def work(progress: Progress) -> Report:
        from compressor.pipeline import compress_model

        chosen = method.model_copy(update={"budget": method.budget or DEFAULT_BUDGET})
        return compress_model(
            demo_settings(
                method=chosen,
                out=out,
                overwrite=overwrite,
                seed=settings.seed,
                device=device,
                batch_size=batch_size,
                limit=limit,
                command=typed_command(),
            ),
            progress=progress,
        )

    require_met(run(work, settings, view=view_report).unmet)
