"""`compressor plan`: choose ranks and write them down, without factorizing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.options import Overwrite, RunSettings
from compressor.cli.run import require_met, run
from compressor.errors import UsageError
from compressor.progress import Progress
from compressor.report.terminal import view_plan
from compressor.schema import PlanReport
from compressor.settings import DataSettings, MethodSettings, ModelSettings


def plan(
    *,
    model: ModelSettings,
    data: DataSettings,
    method: MethodSettings,
    settings: RunSettings,
    out: Annotated[
        Path, typer.Option(help="The plan to write, as JSON.", rich_help_panel="Run")
    ] = Path("plan.json"),
    overwrite: Overwrite = False,
) -> None:
    """Choose a rank for every layer and write an editable plan.json.

    `compressor compress --plan plan.json` replays it exactly.

    Examples:
    compressor plan bert --data docs.csv --budget layers=60%
    compressor plan bert --data docs.csv --budget params=0.8 --seed 1
    """
    if not method.budget:
        raise UsageError("Nothing says how small. Give --budget, for instance --budget layers=50%.")

    def work(progress: Progress) -> PlanReport:
        from compressor.pipeline import plan_model

        return plan_model(
            model,
            data,
            method,
            seed=settings.seed,
            out=out,
            overwrite=overwrite,
            progress=progress,
        )

    require_met(run(work, settings, view=view_plan, shared=True).unmet)
