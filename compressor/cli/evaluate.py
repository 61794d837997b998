"""`compressor evaluate`: quality and cost of any checkpoint, dense or compressed."""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.cli.flatten import Without
from compressor.cli.options import RunSettings
from compressor.cli.run import run
from compressor.errors import UsageError
from compressor.progress import Progress
from compressor.report.terminal import view_evaluation
from compressor.schema import EvaluationReport
from compressor.settings import DataSettings, ModelSettings


def evaluate(
    *,
    model: ModelSettings,
    data: Annotated[DataSettings, Without("data")],
    settings: RunSettings,
    evaluations: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            metavar="lm-eval:TASK",
            help="Run a task of the lm-evaluation-harness too: its name, or the path of its YAML "
            "file. Can be repeated; --data may then be left out.",
            rich_help_panel="Data",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure the accuracy of a checkpoint, dense or compressed, on the test part of the data.

    Examples:
    compressor evaluate small --data docs.csv
    compressor evaluate bert --data docs.csv --limit 500 --json
    compressor evaluate llama --data other.txt --eval lm-eval:arc_easy
    compressor evaluate small --eval lm-eval:tasks/questions.yaml
    """
    if not data.data and not evaluations:
        raise UsageError("Nothing to evaluate on: give --data, or --eval lm-eval:TASK.")

    def work(progress: Progress) -> EvaluationReport:
        from compressor.pipeline import evaluate_model

        return evaluate_model(
            model,
            data,
            evaluations=tuple(evaluations or ()),
            seed=settings.seed,
            progress=progress,
        )

    run(work, settings, view=view_evaluation)
