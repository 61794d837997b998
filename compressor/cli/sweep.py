"""`compressor sweep`: the frontier of accuracy over cost from one measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.flatten import Only
from compressor.cli.options import CacheDirectory, RunSettings
from compressor.cli.run import run, typed_command
from compressor.progress import Progress
from compressor.report.frontier import view_sweep
from compressor.settings import DataSettings, MethodSettings, ModelSettings, SweepSettings
from compressor.sweep.schema import Sweep


def sweep(
    *,
    model: ModelSettings,
    data: DataSettings,
    shared: Annotated[
        MethodSettings,
        Only(("include", "exclude", "gradients", "conv_form", "rank_multiple", "blockwise")),
    ],
    settings: RunSettings,
    out: Annotated[
        Path,
        typer.Option(
            help="Directory to write, or to go on in.", rich_help_panel="Run", show_default=False
        ),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method to sweep. Can be repeated.",
            rich_help_panel="Method",
            show_default="nc1",
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Budgets, one a point: layers=60%,layers=40%. A ladder otherwise.",
            rich_help_panel="Method",
        ),
    ] = None,
    budget_kind: Annotated[
        str,
        typer.Option(
            help="What the ladder shares: layers, params, size or flops.", rich_help_panel="Method"
        ),
    ] = "layers",
    points: Annotated[
        int, typer.Option(min=1, help="Budgets on the ladder.", rich_help_panel="Method")
    ] = 10,
    cache: CacheDirectory = None,
) -> None:
    """Measure once, evaluate a ladder of budgets, draw the frontier and write every plan.

    A sweep that was stopped goes on where it was when it is called again with the same --out.

    Examples:
    compressor sweep bert --data docs.csv --out frontier
    compressor sweep bert --data docs.csv --method nc1 --method svd --out two
    compressor sweep vit --data photos --budgets layers=60%,layers=40% --out few
    """

    def work(progress: Progress) -> Sweep:
        from compressor.sweep.run import sweep_model

        named = [budget.strip() for budget in (budgets or "").split(",") if budget.strip()]
        return sweep_model(
            SweepSettings(
                model=model,
                data=data,
                method=shared,
                methods=tuple(dict.fromkeys(method or ("nc1",))),
                budgets=tuple(dict.fromkeys(named)),
                budget_kind=budget_kind,
                points=points,
                out=out,
                cache=cache,
                seed=settings.seed,
                command=typed_command(),
            ),
            progress=progress,
        )

    run(work, settings, view=view_sweep)
