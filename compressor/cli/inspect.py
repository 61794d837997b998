"""`compressor inspect`: what a model is made of, without data."""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.cli.flatten import Only
from compressor.cli.options import BatchSize, RunSettings
from compressor.cli.run import run
from compressor.progress import Progress
from compressor.report.terminal import view_inspection
from compressor.schema import Inspection
from compressor.settings import MethodSettings, ModelSettings


def inspect(
    model: ModelSettings,
    method: Annotated[MethodSettings, Only(("include", "exclude"))],
    settings: RunSettings,
    batch_size: BatchSize = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Layers to show in the table, at most.", rich_help_panel="Run"),
    ] = None,
) -> None:
    """List the layers that can be factorized: shapes, break-even ranks, parameters, FLOPs.

    Needs no data, and reads shapes without weights where it can.

    Examples:
    compressor inspect bert
    compressor inspect tf_efficientnet_lite0 --json
    compressor inspect net.py:build --input-size 32 --exclude 'stem.*'
    """

    def work(progress: Progress) -> Inspection:
        from compressor.pipeline import inspect_model

        return inspect_model(model, method, batch_size=batch_size or 1, progress=progress)

    run(work, settings, view=lambda result: view_inspection(result, limit=limit))
